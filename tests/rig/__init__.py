"""Several nodes on one machine, for tests and benchmarks: network namespaces with addresses and host names."""
