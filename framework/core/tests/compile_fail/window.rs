//! A window is had from a BAR, which looks at its range.

use wholebar_core::bar::{Bar, Window};

pub fn window(bar: Bar) -> Window {
    Window { bar, range: 0x2000..0x3000 } //~ E0451: fields `bar` and `range` of struct `Window` are private
}
