package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// importer is the command import.
type importer struct{ asker }

func importCommand() *cobra.Command {
	i := &importer{}
	cmd := &cobra.Command{
		Use:   "import BUNDLE...",
		Short: "Store bundles of 'ringmod export' in a cluster, checked as ever",
		Long: "import gives the files of bundles to the node at --addr, which checks them as if they came from upstream:\n" +
			"the rules for module zips, and the checksum database by the proofs in the bundle. No way to the internet is\n" +
			"needed. The other nodes then get what belongs to them. What is held already stays as it is, so an import\n" +
			"that was interrupted can be done again. '-' is standard input.\n\n" +
			"The exit status is 1 when something was not stored; the rest is.",
		Example: "  ringmod import deps.tar --addr node1.example.com:8082\n" +
			"  ssh outside cat deps.tar | ringmod import -",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name a bundle; see 'ringmod import --help'")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := i.run(cmd.Context(), name, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		},
	}
	i.bind(cmd)
	cmd.Flags().Lookup("json").Usage = "print a line of JSON for each file"
	return cmd
}

func (i *importer) run(ctx context.Context, name string, stdin io.Reader, out, progress io.Writer) error {
	file := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return &usageError{err}
		}
		defer func() { _ = f.Close() }()
		file = f
	}
	v := i.view(out, progress, "stored")
	var way dialer
	conn, err := i.dialMember(&way)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := ringmodv1.NewAdminServiceClient(conn).Import(ctx)
	if err != nil {
		return i.explain(err, way.failure())
	}
	sent := make(chan error, 1)
	go func() { sent <- send(stream, bufio.NewReaderSize(file, 1<<20), v) }()
	if err := receive(stream, v); err != nil {
		cancel()
		if local := <-sent; local != nil && !errors.Is(local, io.EOF) {
			return local
		}
		return i.explain(err, way.failure())
	}
	return errors.Join(<-sent, v.end())
}

// importStream is one Import.
type importStream = grpc.BidiStreamingClient[ringmodv1.ImportRequest, ringmodv1.ImportResponse]

// send sends the files of a bundle. io.EOF says that the node has ended the call. After
// trouble with the bundle what was sent before is still stored.
func send(stream importStream, file io.Reader, v *warmView) error {
	err := eachOf(file, func(t target.Target, size int64, content io.Reader) error {
		v.expect(t, size)
		return sendFile(stream, t, size, content)
	})
	if errors.Is(err, io.EOF) {
		return err
	}
	return errors.Join(err, stream.CloseSend())
}

// sendFile sends a file of size bytes. Of an empty one it sends that it has ended.
func sendFile(stream importStream, t target.Target, size int64, content io.Reader) error {
	req := &ringmodv1.ImportRequest{Target: t.String()}
	buf := make([]byte, min(wire.ChunkSize, size))
	for left := size; ; {
		n, err := io.ReadFull(content, buf[:min(int64(len(buf)), left)])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errCutShort
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", t, err)
		}
		left -= int64(n)
		req.Data, req.Last = buf[:n], left == 0
		if err := stream.Send(req); err != nil || left == 0 {
			return err
		}
		req = &ringmodv1.ImportRequest{}
	}
}

// receive notes what became of each file.
func receive(stream importStream, v *warmView) error {
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		t, err := target.Parse(resp.GetTarget())
		if err != nil {
			return fmt.Errorf("the node speaks of %q", resp.GetTarget())
		}
		var failed error
		if resp.GetError() != nil {
			failed = errors.New(failure(resp.GetError()))
		}
		v.done(t, resp.GetHeld(), 0, failed)
	}
}
