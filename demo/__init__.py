"""A whole federation on one machine: broker, coordinator, ten devices, and what goes wrong."""
