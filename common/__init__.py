"""What gateway and workers share."""

import os

# onnxruntime tells its makers how it is used, unless it is told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
