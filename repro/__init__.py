"""Published experiments run again: McMahan et al. 2016 (docs/fedavg-paper.md)."""
