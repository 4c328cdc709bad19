"""`dsr experiment --launcher slurm`: cells as jobs of a cluster, by submitit."""
