// crid is a container runtime for Kubernetes nodes: it serves the Container
// Runtime Interface on a unix socket, and has commands for those who look
// after a node.
//
// This folder is where all parts meet: flags and configuration (main.go,
// config.go), the daemon's life (serve.go), its link to the monitor (link.go),
// and the commands, one file each.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/cridproject/crid/image"
)

const usage = `crid is a container runtime for Kubernetes nodes.

usage:
  crid [--config FILE]                  serve CRI until SIGTERM or SIGINT
  crid [--config FILE] COMMAND ...

commands:
  config default                        print the configuration with every key explained
  config check                          read the configuration and say what is wrong
  image export [-o FILE] [--format oci|docker] NAME|ID...
                                        write images as an archive
  image import [--name NAME] FILE|DIR|- take images out of an archive (OCI or docker save)
  image list [--digests] [--json]       list images; sizes are those of the unpacked files
  image pull NAME                       pull an image
  image remove NAME|ID ...              remove images, each with all its names
  image verify [NAME|ID...]             compare images, or all, with what they were made from
  registry explain NAME                 say who is asked for an image, how, and whether they answer;
                                        --json, --offline (ask nobody)
  status [--watch] [--json]             the node's conditions, counts and pods; --watch: again and again
  pods                                  the table of pods alone
  check                                 compare records, images, monitor, cgroups, mounts and namespaces

flags:
  --config FILE    configuration (default ` + defaultConfigFile + `, if there is one)
  --help           this text
  --version        version of crid

exit codes: 0 done, 1 it did not work, 2 the command line or the configuration is wrong
`

func main() {
	p := program{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	os.Exit(p.run(context.Background(), os.Args[1:]))
}

// program is one run of crid.
type program struct {
	in       io.Reader
	out, err io.Writer
}

// usageError is a wrong command line or configuration: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// run does what args say and returns the exit code.
func (p program) run(ctx context.Context, args []string) int {
	err := p.command(ctx, args)
	var wrong usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(p.out, usage)
		return 0
	case errors.As(err, &wrong):
		fmt.Fprintf(p.err, "crid: %v\n", err)
		return 2
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		fmt.Fprintf(p.err, "crid: %v; try it as root\n", err)
		return 1
	default:
		fmt.Fprintf(p.err, "crid: %v\n", err)
		return 1
	}
}

func (p program) command(ctx context.Context, args []string) error {
	flags := newFlags("crid")
	file := ""
	flags.Func("config", "", func(value string) error {
		if file = value; value == "" {
			return errors.New("it must name a file")
		}
		return nil
	})
	showVersion := flags.Bool("version", false, "")
	args, err := parseFlags(flags, args)
	if err != nil {
		return err
	}
	if *showVersion {
		fmt.Fprintf(p.out, "crid %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	// What is wrong with the command is said before the configuration is read.
	do, err := p.find(args)
	if err != nil {
		return err
	}
	return do(ctx, func() (Config, error) { return loadConfig(file) })
}

// action is a command with its arguments checked. It reads the configuration if
// it needs it.
type action func(ctx context.Context, load func() (Config, error)) error

// configured is an action that needs the configuration.
func configured(do func(context.Context, Config) error) action {
	return func(ctx context.Context, load func() (Config, error)) error {
		c, err := load()
		if err != nil {
			return err
		}
		return do(ctx, c)
	}
}

func (p program) find(args []string) (action, error) {
	if len(args) == 0 {
		return configured(p.serve), nil
	}
	name, rest := args[0], args[1:]
	switch name {
	case "config":
		return p.configCommand(rest)
	case "image":
		return p.imageCommand(rest)
	case "registry":
		return p.registryCommand(rest)
	case "status":
		return p.statusCommand(rest)
	case "pods":
		return configured(p.pods), noArguments(name, rest)
	case "check":
		return configured(p.check), noArguments(name, rest)
	case "help":
		return nil, flag.ErrHelp
	}
	return nil, usagef("unknown command %q; `crid --help` lists them", name)
}

func (p program) configCommand(args []string) (action, error) {
	args, err := parseAnywhere(newFlags("crid config"), args)
	if err != nil {
		return nil, err
	}
	switch strings.Join(args, " ") {
	case "default":
		return func(context.Context, func() (Config, error)) error {
			text, err := Default().documented()
			if err != nil {
				return err
			}
			_, err = p.out.Write(text)
			return err
		}, nil
	case "check":
		return configured(func(_ context.Context, c Config) error {
			if _, err := openSignatures(c); err != nil {
				return usageError{err}
			}
			err := noLimit(image.CheckLimit(c.Root, c.writableLimit()))
			if err != nil && !errors.Is(err, fs.ErrPermission) {
				err = usageError{err}
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(p.out, "the configuration is right")
			return err
		}), nil
	}
	return nil, usagef("`crid config` takes \"default\" or \"check\", not %q", strings.Join(args, " "))
}

func noArguments(command string, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if err := flagsFirst(command, args); err != nil {
		return err
	}
	return usagef("`crid %s` takes no argument, but was given %q", command, args[0])
}

// newFlags is a set of flags whose errors are the caller's to print.
func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

// parseFlags parses args and returns what follows the flags.
func parseFlags(f *flag.FlagSet, args []string) ([]string, error) {
	err := f.Parse(args)
	switch {
	case err == nil:
		return f.Args(), nil
	case errors.Is(err, flag.ErrHelp):
		return nil, err
	}
	// The package writes "-config" where people write "--config".
	what := err.Error()
	if name, ok := strings.CutPrefix(what, "flag provided but not defined: -"); ok {
		what = "unknown flag --" + name
		if name == "config" || name == "version" {
			what += " here, it goes before the command"
		}
	} else if name, ok := strings.CutPrefix(what, "flag needs an argument: -"); ok {
		what = "flag --" + name + " needs a value"
	} else {
		what = strings.NewReplacer(" flag -", " flag --", " for -", " for --").Replace(what)
	}
	if _, command, ok := strings.Cut(f.Name(), " "); ok {
		what = command + ": " + what
	}
	return nil, usagef("%s; `crid --help` lists the flags", what)
}

// parseAnywhere is parseFlags for commands whose flags may also stand behind or
// between the arguments.
func parseAnywhere(f *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if args, err = parseFlags(f, args); err != nil || len(args) == 0 {
			return rest, err
		}
		rest, args = append(rest, args[0]), args[1:]
	}
}

// flagsFirst is parseFlags for a command that has no flags: people ask for help there, or
// mean one of those that go before it.
func flagsFirst(name string, args []string) error {
	_, err := parseFlags(newFlags("crid "+name), args)
	return err
}

// buildVersion is set by the linker, see Makefile.
var buildVersion string

// version is that of the build, else that of the module.
func version() string {
	v := buildVersion
	if b, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = b.Main.Version
	}
	if v == "" || v == "(devel)" {
		return "0.0.0-unknown"
	}
	return strings.TrimPrefix(v, "v")
}
