"""Who talks to whom: connections, their byte streams, processes and containers."""
