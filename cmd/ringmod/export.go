package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// A bundle is a tar archive of files under their names in the GOPROXY protocol, those of
// checksum databases first. Unpacked, it is a folder for GOPROXY=file://.

// exporter is the command export.
type exporter struct {
	warmer

	output      string
	since       []string
	withPrivate bool
}

func exportCommand() *cobra.Command {
	x := &exporter{}
	cmd := &cobra.Command{
		Use:   "export --output BUNDLE FILE|MODULE@VERSION...",
		Short: "Pack modules with their checksum proofs, for a network without internet",
		Long: "export writes what 'ringmod warm' would fetch into a bundle: a tar archive of files under their names in\n" +
			"the GOPROXY protocol, with the checksum database's proofs. 'ringmod import' stores it in another cluster;\n" +
			"unpacked it is a folder that GOPROXY=file:// can read. What an earlier bundle has can be left out.\n\n" +
			"The bundle appears when it is complete. The exit status is 1 when something could not be had; no bundle is written then.",
		Example: "  ringmod export --output deps.tar go.mod\n" +
			"  ringmod export --output more.tar --since deps.tar go.mod",
		Args: needWanted,
		RunE: func(cmd *cobra.Command, args []string) error {
			if x.output == "" {
				return usagef("--output: name the bundle that is to be written")
			}
			todo, err := x.wanted(args, cmd.InOrStdin())
			if err != nil {
				return err
			}
			return x.run(cmd.Context(), todo, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	x.bindWarm(cmd)
	cmd.Flags().StringVarP(&x.output, "output", "o", "", "`file` of the bundle")
	cmd.Flags().StringArrayVar(&x.since, "since", nil, "an earlier `bundle`, whose files are left out; repeatable")
	cmd.Flags().BoolVar(&x.withPrivate, "with-private", false, "pack private modules, too, which whoever gets the bundle can read")
	return cmd
}

func (x *exporter) run(ctx context.Context, todo *wanted, out, progress io.Writer) error {
	had, err := x.had()
	if err != nil {
		return err
	}
	nodes, stop, err := x.join(ctx)
	if err != nil {
		return err
	}
	defer stop()
	v := x.view(out, progress, "packed")
	targets, err := x.targets(ctx, nodes, todo, v)
	if err != nil {
		return err
	}
	return writeWhole(x.output, func(to io.Writer) error {
		b := &bundler{tar: tar.NewWriter(to), had: had, private: x.withPrivate}
		s := &sums{nodes: nodes, spec: x.spec, keep: func(t target.Target, data []byte) { b.proof(t, data) }}
		if err := x.prove(ctx, s, todo.modules(), v); err != nil {
			return err
		}
		x.ahead(ctx, nodes, targets, had)
		for _, t := range targets {
			size, err := b.file(ctx, nodes, t)
			if ctx.Err() != nil {
				return errors.New("interrupted; nothing was written")
			}
			if b.failed != nil {
				return b.failed
			}
			v.done(t, had[t.String()], size, err)
		}
		return errors.Join(v.end(), b.tar.Close())
	})
}

// ahead fetches side by side what is then packed one after the other, which says what
// came of it.
func (x *exporter) ahead(ctx context.Context, nodes *cluster.Cluster, targets []target.Target, had map[string]bool) {
	var group errgroup.Group
	group.SetLimit(x.parallel)
	for _, t := range targets {
		if !had[t.String()] && ctx.Err() == nil {
			group.Go(func() error {
				_, _, _ = warm(ctx, nodes, t)
				return nil
			})
		}
	}
	_ = group.Wait()
}

// had returns the names in earlier bundles.
func (x *exporter) had() (map[string]bool, error) {
	had := map[string]bool{}
	for _, name := range x.since {
		file, err := os.Open(name)
		if err != nil {
			return nil, usagef("--since: %w", err)
		}
		err = eachOf(file, func(t target.Target, _ int64, _ io.Reader) error {
			had[t.String()] = true
			return nil
		})
		_ = file.Close()
		if err != nil {
			return nil, usagef("--since %s: %w", name, err)
		}
	}
	return had, nil
}

// writeWhole writes a file that appears when it is complete.
func writeWhole(name string, write func(io.Writer) error) error {
	temp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	err = errors.Join(temp.Chmod(0o644), write(temp))
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

// bundler writes a bundle.
type bundler struct {
	had     map[string]bool
	private bool // may be packed

	mu     sync.Mutex
	tar    *tar.Writer
	failed error // of writing
}

// proof adds what was read of a checksum database, once.
func (b *bundler) proof(t target.Target, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.had[t.String()] || b.failed != nil || !t.Kind.Immutable() {
		return
	}
	b.had[t.String()] = true
	if b.failed = b.head(t, int64(len(data)), time.Time{}); b.failed == nil {
		_, b.failed = b.tar.Write(data)
	}
}

func (b *bundler) head(t target.Target, size int64, modified time.Time) error {
	return b.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: t.String(), Size: size, Mode: 0o644, ModTime: modified, Format: tar.FormatPAX})
}

var errPrivate = errors.New("the module is private: whoever gets the bundle could read it; say --with-private if that is meant")

// file adds a file of a module. An error is that of the file; failed is set when it is
// the bundle's.
func (b *bundler) file(ctx context.Context, nodes *cluster.Cluster, t target.Target) (int64, error) {
	if b.had[t.String()] {
		return 0, nil
	}
	obj, err := nodes.Get(ctx, cache.Request{Target: t, Mode: cache.AllowFill, Whole: true})
	if err != nil {
		return 0, err
	}
	defer obj.Body.Close()
	if obj.Private && !b.private {
		return 0, errPrivate
	}
	if err := b.head(t, obj.Size, obj.ModTime.Truncate(time.Second)); err != nil {
		b.failed = err
		return 0, err
	}
	// From here on the bundle is of no use when the file breaks off.
	size, err := io.Copy(b.tar, obj.Body)
	if err == nil && size != obj.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		b.failed = fmt.Errorf("%s: %w", t, err)
	}
	return size, err
}

var errCutShort = errors.New("the bundle is cut short: get it whole and do it again")

// eachOf calls do for each file of a bundle.
func eachOf(r io.Reader, do func(t target.Target, size int64, content io.Reader) error) error {
	archive := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF) && n == 0:
			return errors.New("the bundle is empty")
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return errCutShort
		case errors.Is(err, tar.ErrHeader):
			return errors.New("not a bundle of 'ringmod export': it is no tar archive")
		case err != nil:
			return err
		}
		t, err := target.Parse(h.Name)
		if err != nil || !t.Kind.Immutable() || h.Typeflag != tar.TypeReg {
			return fmt.Errorf("not a bundle of 'ringmod export': it holds %q", h.Name)
		}
		if err := do(t, h.Size, archive); err != nil {
			return err
		}
	}
}
