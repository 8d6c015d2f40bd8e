"""The Qtap file: what may stand in it, how it is read, and what to tell about it."""

from otel_qtap.config.loading import LoadedConfig, load_config
from otel_qtap.config.messages import ConfigError, Problem, Severity
from otel_qtap.config.model import Config

__all__ = ["Config", "ConfigError", "LoadedConfig", "Problem", "Severity", "load_config"]
