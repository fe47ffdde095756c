//! Owns Go's habits of writing flags, so that arguments written for dcgm-exporter mean the same
//! here: one dash or two before any name, `-rbmn`, and a variable set to nothing is not set.

use std::ffi::OsString;

use clap::{Arg, Command, CommandFactory, FromArgMatches};

/// Reads the command line and the variables.
pub(super) fn parse<T: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<T, clap::Error> {
    let mut command = without_empty_variables(T::command());
    let args = as_clap_reads(&command, args);
    let matches = command.try_get_matches_from_mut(args)?;
    T::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn without_empty_variables(command: Command) -> Command {
    command.mut_args(|arg| {
        let empty = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|v| v.is_empty()));
        if empty { arg.env(None) } else { arg }
    })
}

/// Writes every flag that is known with the dashes that clap wants. Values are left alone.
fn as_clap_reads(command: &Command, args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut written: Vec<OsString> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str().filter(|text| text.starts_with('-') && *text != "--") else {
            let last = arg == "--";
            written.push(arg);
            if last {
                written.extend(args);
                break;
            }
            continue;
        };
        let bare = text.strip_prefix("--").or(text.strip_prefix('-')).unwrap_or(text);
        let (name, value) = bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(value)));
        let Some(flag) = command.get_arguments().find(|flag| is_named(flag, name)) else {
            written.push(arg);
            continue;
        };
        let dashes = if name.chars().count() == 1 { "-" } else { "--" };
        written.push(match value {
            Some(value) => format!("{dashes}{name}={value}").into(),
            None => format!("{dashes}{name}").into(),
        });
        let value_follows = value.is_none() && !flag.is_require_equals_set();
        if value_follows {
            written.extend(args.next());
        }
    }
    written
}

fn is_named(flag: &Arg, name: &str) -> bool {
    let mut characters = name.chars();
    let short = characters.next().filter(|_| characters.next().is_none());
    (short.is_some() && flag.get_short() == short)
        || flag.get_long() == Some(name)
        || flag.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;

    #[test]
    fn dashes_as_go_takes_them() {
        let command = Args::command();
        let written = |args: &[&str]| {
            let args = std::iter::once("x").chain(args.iter().copied()).map(OsString::from);
            as_clap_reads(&command, args)[1..].join(" ".as_ref()).into_string().unwrap()
        };
        assert_eq!(written(&["-rbmn", "-collectors", "-f"]), "--rbmn --collectors -f");
        assert_eq!(written(&["--k=false", "-kubernetes=t", "-f=/x"]), "-k=false --kubernetes=t -f=/x");
        // What stands behind a switch is no value of it, and unknown names stay as they are.
        assert_eq!(written(&["-k", "-debug", "-nope", "--", "-debug"]), "-k --debug -nope -- -debug");
    }
}
