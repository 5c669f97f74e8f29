"""GPU backends: adapters of `gateway.core.ports.Backend`."""
