"""Files, folders and objects: addresses, reads, writes, and leases that decide who may write."""
