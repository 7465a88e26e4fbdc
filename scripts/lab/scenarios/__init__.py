"""One file per peer. Importing this package fills the list in `scenario`."""

from . import demo, dpdk, guest, linerate, memory, migration, nic, reconnect, viommu, virtio_user  # noqa: F401
