"""Models ready to export."""
