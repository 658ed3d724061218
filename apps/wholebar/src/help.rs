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

    /// A line that goes on in the next one, below its remark, is as wide as it may be: folded, it would leave the rest behind.
    #[test]
    fn remarks_of_several_lines_are_not_folded() {
        fn check(command: &Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for (line, next) in help.lines().zip(help.lines().skip(1)) {
                let goes_on = next.starts_with("      ");
                assert!(!goes_on || line.chars().count() <= WIDTH, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&crate::Cli::command());
    }

    /// Has clap take a line of a shell's: what of it is the command, without remarks.
    fn take(line: &str, place: &str) -> usize {
        let line = line.split("  ").next().unwrap_or(line).split(" #").next().unwrap_or(line);
        let words = line.split(" | ").map(|part| part.trim_start_matches("sudo ").split_whitespace());
        let commands = words.filter(|words| words.clone().next() == Some("wholebar"));
        let taken = commands.map(|words| {
            let words = words.take_while(|word| !["&", "<", ">", "2>"].iter().any(|shell| word.starts_with(shell)));
            if let Err(error) = crate::Cli::command().try_get_matches_from(words) {
                assert!(!error.use_stderr(), "{place}: {line}: {error}");
            }
        });
        taken.count()
    }

    /// Each command that does something has an example, and each example is taken as it stands.
    #[test]
    fn examples_are_what_the_command_takes() {
        fn check(command: &Command, path: &str, examples: &mut usize) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let own: usize =
                help.lines().filter_map(|line| line.strip_prefix(INDENT)).map(|line| take(line, path)).sum();
            assert!(own > 0 || command.has_subcommands() || path.contains(" help"), "{path} has no example");
            *examples += own;
            command.get_subcommands().for_each(|c| check(c, &format!("{path} {}", c.get_name()), examples));
        }
        let mut examples = 0;
        check(&crate::Cli::command(), "wholebar", &mut examples);
        assert!(examples > 100, "{examples}");
    }

    /// So are those of the README and of the guide.
    #[test]
    fn commands_of_the_documentation_are_what_the_command_takes() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let guide = std::fs::read_dir(root.join("framework/src/guide")).unwrap().map(|entry| entry.unwrap().path());
        let pages: Vec<_> =
            guide.chain([root.join("README.md")]).filter(|path| path.extension() == Some("md".as_ref())).collect();
        let mut commands = 0;
        for path in pages {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut shell = false;
            for line in text.lines() {
                if line.starts_with("```") {
                    shell = line == "```sh";
                } else if shell {
                    commands += take(line, &path.display().to_string());
                }
            }
        }
        assert!(commands > 30, "{commands}");
    }
}
