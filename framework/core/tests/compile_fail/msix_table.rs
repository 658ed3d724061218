//! The MSI-X table is to be read.

use wholebar_core::bar::MsixTable;

pub fn write(table: &mut MsixTable) {
    table.write(0, 0u32); //~ E0599: no method named `write` found for mutable reference `&mut MsixTable` in the current scope
}

pub fn bar(table: &MsixTable) {
    let _ = &table.table; //~ E0616: field `table` of struct `MsixTable` is private
}
