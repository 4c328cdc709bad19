"""Who computes what where: the native kernels of each device, and the plans they run on."""
