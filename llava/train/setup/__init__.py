"""What is chosen before the first step: what trains and in which dtype, attention, kernels, processes."""
