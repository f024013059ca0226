package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/verify"
)

// How long a stop waits for the streams that run, and then for the fills that
// nobody waits for any more.
const (
	drainTime = 30 * time.Second
	fillGrace = 5 * time.Second
)

func serveCommand() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a node and a gateway in one process",
		Long: "serve caches Go modules on this machine: it answers the go command, fetches what it\n" +
			"lacks from the upstream, verifies it and keeps it below --data-dir.\n\n" +
			"Every flag has an environment variable (--http-addr is RINGMOD_HTTP_ADDR) and a key in\n" +
			"the file given by --config (http-addr). The command line wins over the environment, the\n" +
			"environment over the file. When it serves it prints one line 'ready http=… grpc=… admin=…'.",
		Example: "  ringmod serve\n" +
			"  ringmod serve --http-addr :8080 --data-dir /var/cache/ringmod --upstream https://mirror.example.com,direct",
		Args: cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			return o.resolve()
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.bind(cmd.Flags())
	return cmd
}

// serve runs until a signal or ctx ends it.
func serve(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	log, flush, err := o.logger(stderr)
	if err != nil {
		return err
	}
	defer flush()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()

	listeners, err := o.listen(ctx)
	if err != nil {
		return err
	}
	defer listeners.close()
	verifier := verify.New(0) // one for fills and inspections, which share its workers
	inspector := node.NewInspector(verifier)
	disk, err := store.OpenDisk(store.DiskConfig{Dir: o.dataDir, Inspect: inspector.Inspect, Logger: log}) //nolint:contextcheck // its walk lives as long as the disk
	if err != nil {
		return err
	}
	defer func() { _ = disk.Close() }()

	p, err := o.assemble(disk, verifier, inspector, listeners, log)
	if err != nil {
		return err
	}
	return p.run(ctx, func() { fmt.Fprintln(stdout, listeners.ready()) })
}

func (o *options) logger(stderr io.Writer) (*slog.Logger, func(), error) {
	level, err := parseLevel(o.logLevel)
	if err != nil {
		return nil, nil, err
	}
	format := o.logFormat
	switch {
	case format != "":
	case isTerminal(stderr): // people read it
		format = "text"
	default:
		format = "json"
	}
	batch := newBatchWriter(stderr)
	log, err := newLogger(batch, format, level)
	return log, batch.Flush, err
}

// process is everything that runs, built but not started.
type process struct {
	log       *slog.Logger
	node      *node.Node
	web       *http.Server
	admin     *http.Server
	grpc      *grpc.Server
	listeners *listeners
	tlsCert   string
	tlsKey    string
	stopping  atomic.Bool
}

// run serves until ctx is done, then stops in order: no new connections, the
// streams that run, the fills that run. A second signal ends all at once.
func (p *process) run(ctx context.Context, ready func()) error {
	var group errgroup.Group
	serving, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	start := func(serve func() error) {
		group.Go(func() error {
			if err := serve(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				failed(err)
				return err
			}
			return nil
		})
	}
	start(func() error {
		if p.tlsCert != "" {
			return p.web.ServeTLS(p.listeners.http, p.tlsCert, p.tlsKey)
		}
		return p.web.Serve(p.listeners.http)
	})
	start(func() error { return p.admin.Serve(p.listeners.admin) })
	start(func() error { return p.grpc.Serve(p.listeners.grpc) })
	ready()
	p.log.InfoContext(ctx, "serving", "http", p.listeners.http.Addr().String(), "admin", p.listeners.admin.Addr().String(), "version", version())

	<-serving.Done()
	p.stopping.Store(true)
	p.log.InfoContext(ctx, "stopping", "drain_ms", drainTime.Milliseconds())
	p.drain(context.WithoutCancel(ctx))
	if err := group.Wait(); err != nil {
		return err
	}
	p.log.InfoContext(ctx, "stopped")
	return nil
}

// drain ends the servers and the node, at once when another signal comes.
func (p *process) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := p.web.Shutdown(ctx); err != nil {
		p.log.WarnContext(ctx, "cutting streams that did not finish", "err", err)
		_ = p.web.Close()
	}
	_ = p.admin.Close()
	p.grpc.Stop()
	now, cancel := context.WithCancel(ctx)
	cancel()
	hasten := context.AfterFunc(ctx, func() { _ = p.node.Run(now, 0) })
	defer hasten()
	_ = p.node.Run(now, fillGrace)
}

func (p *process) ready() error {
	if p.stopping.Load() {
		return errors.New("stopping")
	}
	return nil
}

// registry returns the metrics registry of a process.
func registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}
