//! What `--help` says at its end: examples that can be copied from a terminal of 80 columns. An example that is longer goes on in lines of its own, as a
//! shell takes it; so the sources need not be folded by hand.

use crate::output::{self, WIDTH};
use clap::Command;

/// What an example begins with, and what its further lines do.
const INDENT: &str = "  ";
const FURTHER: &str = "    ";

/// Folds the examples of a command, and of all below it.
pub fn fold_examples(command: Command) -> Command {
    let command = match command.get_after_help().map(ToString::to_string) {
        Some(help) => command.after_help(help.lines().map(fold).collect::<Vec<_>>().join("\n")),
        None => command,
    };
    command.mut_subcommands(fold_examples)
}

/// A line that is no example (it is not indented) is left to clap, which wraps it.
fn fold(line: &str) -> String {
    let Some(example) = line.strip_prefix(INDENT).filter(|_| line.chars().count() > WIDTH) else {
        return line.to_owned();
    };
    // A remark is told from the command by the room between them, and has a line of its own.
    let (command, remark) = example.trim_start().split_once("  ").unwrap_or((example, ""));
    let width = WIDTH - FURTHER.len() - " \\".len();
    let mut text = INDENT.to_owned() + &output::lines(command, width).join(&format!(" \\\n{FURTHER}"));
    for line in output::lines(remark, WIDTH - FURTHER.len()).into_iter().filter(|line| !line.is_empty()) {
        text += &format!("\n{FURTHER}{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn what_is_folded_is_the_same_to_a_shell() {
        let words = ["wholebar net gen 0000:01:00.0 --to 0000:02:00.0"; 3].join(" ");
        let folded = fold(&format!("  {words}"));
        assert!(folded.lines().count() > 1 && folded.lines().all(|line| line.len() <= WIDTH), "{folded}");
        assert_eq!(folded.replace("\\\n", "").split_whitespace().collect::<Vec<_>>().join(" "), words);
        assert_eq!(fold("  wholebar bench"), "  wholebar bench");
        let remark = format!("  wholebar bench --json new.json    {}", "what it is good for ".repeat(4));
        assert!(fold(&remark).starts_with("  wholebar bench --json new.json\n    what it is"), "{}", fold(&remark));
    }

    /// Of every command there is, those of `--help` and `-h` too.
    #[test]
    fn no_example_is_wider_than_a_terminal() {
        fn check(command: &Command, examples: &mut usize) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines().filter(|line| line.starts_with(INDENT)) {
                assert!(line.chars().count() <= WIDTH, "{}: {line}", command.get_name());
                *examples += 1;
            }
            command.get_subcommands().for_each(|command| check(command, examples));
        }
        let mut examples = 0;
        check(&fold_examples(crate::Cli::command()), &mut examples);
        assert!(examples > 100, "{examples}");
    }
}
