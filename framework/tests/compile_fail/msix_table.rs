//! The MSI-X table is to be read.

use wholebar::bar::MsixTable;

fn write(table: &mut MsixTable) {
    table.write(0, 0u32);
}

fn bar(table: &MsixTable) {
    &table.table;
}

fn main() {}
