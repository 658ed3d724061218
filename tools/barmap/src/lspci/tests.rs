use super::*;

#[test]
fn an_empty_text_has_nothing() {
    assert_eq!(parse(""), Machine::default());
    assert_eq!(read(b" \n\t"), Err(Error::Empty));
}
