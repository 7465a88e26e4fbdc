"""One file per peer. Importing this package fills the list in `scenario`."""

from . import afxdp, demo, dpdk, dpdk_port, guest, linerate, memif, memory, migration, nic  # noqa: F401
from . import packet, reconnect, takeover, uml, viommu, virtio_user, vswitch  # noqa: F401
from . import vswitch_openflow  # noqa: F401
