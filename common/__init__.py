"""Code that the gateway and the workers share."""

import os

# onnxruntime sends telemetry unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
