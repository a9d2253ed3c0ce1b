"""docker-compose.yml, with its anchors and merges followed."""

from __future__ import annotations

from typing import Any

import yaml

from common.settings import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
