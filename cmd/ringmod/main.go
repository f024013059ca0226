// Command ringmod is a cache for Go modules: one binary that serves the GOPROXY
// protocol to developers and keeps what it has served.
//
//	ringmod serve      a node and a gateway in one process
//	ringmod node       a cache node
//	ringmod gateway    an HTTP gateway, no disk
//	ringmod dev        a whole cluster on this machine
//	ringmod status     show the members of a cluster and how they do
//	ringmod drain      take a node out for good without losing a copy
//	ringmod forget     take out a node that is lost
//	ringmod explain    tell where a module belongs and who holds it
//	ringmod scrub      check what nodes hold, and repair it
//	ringmod audit      list what upstream has moved or removed
//	ringmod purge      remove a module from all nodes and keep it removed
//	ringmod certs      make certificates for the members of a cluster
//	ringmod version    print the version
//
// Exit status: 0 after an orderly end, 1 when something failed, 2 when the
// command line, the environment or the configuration file is wrong. Either way
// one line on standard error says what to do.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// usageError is a mistake in how the program was called.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// run executes one command line and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand() //nolint:contextcheck // commands get theirs from ExecuteContext
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	started := false
	for _, cmd := range root.Commands() {
		body := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			started = true
			return body(cmd, args)
		}
	}
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	// YAML's errors and several joined into one have a line each.
	fmt.Fprintf(stderr, "ringmod: %s\n", strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; "))
	if _, usage := errors.AsType[*usageError](err); usage || !started {
		return 2
	}
	return 1
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ringmod",
		Short: "A distributed cache for Go modules",
		Long: "ringmod serves Go modules to the go command, fetches each file from upstream once,\n" +
			"verifies it against the checksum database and keeps it.",
		Example:       "  ringmod serve\n  GOPROXY=http://127.0.0.1:8080 go mod download",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see '%s --help'", err, cmd.CommandPath())
	})
	root.AddCommand(
		serveCommand(), nodeCommand(), gatewayCommand(), devCommand(), statusCommand(), explainCommand(), drainCommand(), forgetCommand(), scrubCommand(), auditCommand(), purgeCommand(), refreshCommand(), warmCommand(), exportCommand(), importCommand(),
		certsCommand(), versionCommand(),
	)
	return root
}
