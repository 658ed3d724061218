//! Maps in a type1 container: x86-64 and arm64.

use super::container::Container;
use super::iommu::{Target, dma_error, unmapped};
use super::{caps, ioctl};
use crate::Result;
use crate::mem::{Arena, DmaBackend, Iova, IovaWindow};
use std::sync::Arc;

pub(super) struct Type1 {
    container: Arc<Container>,
    max_maps: Option<usize>,
}

impl Type1 {
    pub(super) fn new(target: &Target, container: Arc<Container>) -> Result<Self> {
        let info = ioctl::type1_info(container.fd())
            .map_err(|e| target.failed("asking what the IOMMU can map", e, "the kernel log says more"))?;
        let (_, max_maps) = caps::of_type1(&info);
        Ok(Self { container, max_maps })
    }
}

impl DmaBackend for Type1 {
    /// Asked anew each time: a group that joins can take some away.
    fn windows(&self) -> Vec<IovaWindow> {
        match ioctl::type1_info(self.container.fd()) {
            Ok(info) => caps::of_type1(&info).0,
            Err(error) => {
                tracing::error!(%error, "the IOMMU does not say what it can map");
                Vec::new()
            }
        }
    }

    fn max_maps(&self) -> Option<usize> {
        self.max_maps
    }

    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()> {
        ioctl::map_dma(self.container.fd(), &arena, iova).map_err(|e| dma_error("map", iova, arena.len(), e))
    }

    fn unmap(&self, iova: Iova, len: u64) -> Result<()> {
        unmapped(iova, len, ioctl::unmap_dma(self.container.fd(), iova, len))
    }

    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(None)
    }
}
