"""OpenTelemetry-native traffic capture for HAProxy."""

__version__ = "0.1.0"
