"""The Qtap file: what may stand in it, how it is read, and what to tell about it."""

from otel_qtap.config.loading import LoadedConfig, Report, check, check_file, load_config
from otel_qtap.config.messages import ConfigError, Problem, Severity
from otel_qtap.config.model import Config
from otel_qtap.config.reload import Reload, reload_config

__all__ = [
    "Config",
    "ConfigError",
    "LoadedConfig",
    "Problem",
    "Reload",
    "Report",
    "Severity",
    "check",
    "check_file",
    "load_config",
    "reload_config",
]
