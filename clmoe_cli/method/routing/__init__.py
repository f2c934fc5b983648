"""Which task and class an input belongs to: fixed features, the gate, routers, calibrated p-values."""
