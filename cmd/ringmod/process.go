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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/life"
)

// How long a stop waits for the streams that run, and then for the fills that
// nobody waits for any more.
const (
	drainTime = 30 * time.Second
	fillGrace = 5 * time.Second
)

// settings is said at the end of each command's help that takes flags.
const settings = "\n\nEvery flag has an environment variable (--admin-addr is RINGMOD_ADMIN_ADDR) and a key in\n" +
	"the file given by --config (admin-addr). The command line wins over the environment, the\n" +
	"environment over the file. When it serves it prints one line 'ready' with its addresses.\n" +
	"OTEL_EXPORTER_OTLP_ENDPOINT is the URL of a collector of OpenTelemetry traces."

// processCommand completes a command that runs one process of these parts.
func processCommand(cmd *cobra.Command, has parts) *cobra.Command {
	o := &options{parts: has}
	cmd.Long += settings
	cmd.Args = cobra.NoArgs
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := complete(cmd.Flags(), os.LookupEnv); err != nil {
			return err
		}
		o.gossipAnywhere = o.parts.node && o.parts.gateway && !cmd.Flags().Changed("gossip-addr")
		return o.resolve()
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	o.bind(cmd.Flags())
	return cmd
}

// stopSignals end a process in an orderly way. A terminal that is closed says SIGHUP, which
// nohup has us ignore.
func stopSignals() []os.Signal {
	signals := []os.Signal{syscall.SIGTERM, os.Interrupt}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// run is the life of a process that a signal or ctx ends.
func (o *options) run(ctx context.Context, stdout, stderr io.Writer) error {
	log, flush, err := o.logger(stderr)
	if err != nil {
		return err
	}
	defer flush()
	ctx, stop := signal.NotifyContext(ctx, stopSignals()...)
	defer stop()
	p, err := o.start(ctx, log)
	if err != nil {
		return err
	}
	defer p.close()
	return p.run(ctx, func() { fmt.Fprintln(stdout, p.listeners.ready()) })
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

// task is something that runs until its context is done.
type task func(ctx context.Context) error

// process is everything that runs, built but not started.
type process struct {
	id        string
	place     string // its region
	log       *slog.Logger
	listeners *listeners
	closers   []func() // in the order of opening

	members    members
	membership task         // says goodbye before the streams are drained
	nodesReady func() error // of a gateway: why no node can be asked; else nil
	life       *life.Life   // of a node
	tasks      []task
	node       *node.Node   // nil: a gateway
	disk       disk         // with node
	grpc       *grpc.Server // with node
	health     *health.Server
	web        *http.Server // nil: no gateway
	admin      *http.Server
	tlsCert    string
	tlsKey     string

	stopping atomic.Bool
	ending   chan struct{} // closed when the streams are to end
}

// close releases what start has opened.
func (p *process) close() {
	for _, each := range slices.Backward(p.closers) {
		each()
	}
}

// run serves until ctx is done, the node has left or a part fails, then stops in order: the others
// hear that we go, no new connections, the streams that run, the fills that run.
// A second signal ends all at once.
func (p *process) run(ctx context.Context, ready func()) error {
	var group errgroup.Group
	serving, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	start := func(serve func() error) {
		group.Go(func() error {
			if err := serve(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				failed(err)
				return err
			}
			return nil
		})
	}
	gossip, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	beside, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	start(func() error { return p.membership(gossip) })
	for _, each := range p.tasks {
		start(func() error { return each(beside) })
	}
	if p.life != nil {
		start(func() error { return p.live(serving, failed) })
	}
	p.serve(start)
	ready()
	p.log.InfoContext(ctx, "serving", "addresses", strings.TrimPrefix(p.listeners.ready(), "ready "), "version", version())

	<-serving.Done()
	p.stopping.Store(true)
	p.log.InfoContext(ctx, "stopping", "drain_ms", drainTime.Milliseconds())
	leave()
	p.drain(context.WithoutCancel(ctx))
	end()
	if err := group.Wait(); err != nil {
		return err
	}
	p.log.InfoContext(ctx, "stopped")
	return nil
}

// live goes through the states of the node, and ends the process when it has left.
func (p *process) live(ctx context.Context, end context.CancelCauseFunc) error {
	err := p.life.Run(ctx)
	select {
	case <-p.life.Gone():
		end(nil)
	default:
	}
	return err
}

// serve opens the doors.
func (p *process) serve(start func(func() error)) {
	if p.web != nil {
		start(func() error {
			if p.tlsCert != "" {
				return p.web.ServeTLS(p.listeners.http, p.tlsCert, p.tlsKey)
			}
			return p.web.Serve(p.listeners.http)
		})
	}
	if p.grpc != nil {
		start(func() error { return p.grpc.Serve(p.listeners.grpc) })
	}
	start(func() error { return p.admin.Serve(p.listeners.admin) })
}

// drain ends the servers and the node, at once when another signal comes.
func (p *process) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, stopSignals()...)
	defer stop()
	if p.web != nil {
		if err := p.web.Shutdown(ctx); err != nil {
			p.log.WarnContext(ctx, "cutting streams that did not finish", "err", err)
			_ = p.web.Close()
		}
	}
	if p.node != nil {
		p.drainNode(ctx)
	}
	_ = p.admin.Close()
}

// drainNode lets the calls that run finish, and then the fills.
func (p *process) drainNode(ctx context.Context) {
	p.health.Shutdown()
	close(p.ending)
	hastenCalls := context.AfterFunc(ctx, p.grpc.Stop)
	defer hastenCalls()
	now, cancel := context.WithCancel(ctx)
	cancel()
	var ending errgroup.Group
	ending.Go(func() error {
		hasten := context.AfterFunc(ctx, func() { _ = p.node.Run(now, 0) })
		defer hasten()
		return p.node.Run(now, fillGrace)
	})
	p.grpc.GracefulStop()
	_ = ending.Wait()
}

// canServe tells why the requests of developers should go elsewhere.
func (p *process) canServe() error {
	if p.stopping.Load() {
		return errors.New("stopping")
	}
	if p.nodesReady != nil {
		return p.nodesReady()
	}
	return nil
}

// ready tells why a roll-out should wait for this process.
func (p *process) ready() error {
	if err := p.canServe(); err != nil || p.life == nil {
		return err
	}
	if err := p.disk.Dead(); err != nil {
		return err
	}
	return p.life.Ready()
}

// registry returns the metrics registry of a process.
func registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}
