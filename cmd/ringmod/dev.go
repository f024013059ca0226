package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

const (
	maxDev     = 32               // nodes, and gateways, of one process
	devTimeout = 30 * time.Second // for all of them to know each other
)

// dev is a cluster inside one process.
type dev struct {
	options  options // what all members have in common
	nodes    int
	regions  int
	gateways int
}

func devCommand() *cobra.Command {
	d := &dev{options: options{parts: parts{node: true, gateway: true}}}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster on this machine, to try it out",
		Long: "dev runs nodes and gateways in one process, with temporary data that is removed when it\n" +
			"ends, and prints a GOPROXY line for each gateway. The first gateway, node and admin\n" +
			"address are those of the flags, or any free port where these are taken and were not\n" +
			"asked for; all others are free ports.",
		Example: "  ringmod dev\n  ringmod dev --nodes 6 --regions 3 --gateways 3\n  ringmod status",
		Args:    cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			for name, addr := range map[string]*string{"http-addr": &d.options.httpAddr, "grpc-addr": &d.options.grpcAddr, "admin-addr": &d.options.adminAddr} {
				if !cmd.Flags().Changed(name) {
					*addr = freeOr(*addr)
				}
			}
			return d.resolve()
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&d.nodes, "nodes", 3, "how many `nodes`")
	flags.IntVar(&d.regions, "regions", 1, "how many `regions` they are spread over")
	flags.IntVar(&d.gateways, "gateways", 1, "how many `gateways`, spread likewise")
	d.bind(flags)
	return cmd
}

// bind offers the settings that all members have in common, and where the first of
// them listen.
func (d *dev) bind(flags *pflag.FlagSet) {
	o := &d.options
	o.bindAddrs(flags)
	o.bindRing(flags)
	o.bindDurability(flags)
	o.bindSources(flags)
	o.bindHooks(flags)
	o.bindCommon(flags)
	o.logLevel = "warn"
	flags.Lookup("log-level").DefValue = "warn"
}

// freeOr returns addr, or any port of its host when it is taken.
func freeOr(addr string) string {
	l, err := net.Listen("tcp", addr) //nolint:noctx // local and instant
	if err != nil {
		host, _, _ := net.SplitHostPort(addr)
		return net.JoinHostPort(host, "0")
	}
	l.Close()
	return addr
}

func (d *dev) resolve() error {
	for _, each := range []struct {
		flag  string
		n     int
		least int
	}{{"nodes", d.nodes, 1}, {"regions", d.regions, 1}, {"gateways", d.gateways, 1}} {
		if each.n < each.least || each.n > maxDev {
			return usagef("--%s must be %d to %d, not %d", each.flag, each.least, maxDev, each.n)
		}
	}
	if d.regions > d.nodes {
		return usagef("--regions %d needs as many --nodes, not %d", d.regions, d.nodes)
	}
	d.options.gossipAddr, d.options.region, d.options.weight, d.options.founding = "127.0.0.1:0", "default", 1, true
	return d.options.resolve()
}

// run starts the members one after the other, as the later ones need the address
// of the first, and ends them together.
func (d *dev) run(ctx context.Context, stdout, stderr io.Writer) error {
	log, flush, err := d.options.logger(stderr)
	if err != nil {
		return err
	}
	defer flush()
	dir, err := os.MkdirTemp("", "ringmod-dev-")
	if err != nil {
		return err
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			log.WarnContext(ctx, "temporary data is left", "dir", dir, "err", err)
		}
	}()
	ctx, stop := signal.NotifyContext(ctx, stopSignals()...)
	defer stop()
	all, err := d.start(ctx, dir, log)
	defer func() {
		for _, p := range all {
			p.close()
		}
	}()
	if err != nil {
		return err
	}
	return runAll(ctx, all, func() error { return d.announce(ctx, all, stdout) })
}

// start builds all members; what it has built it returns also with an error.
func (d *dev) start(ctx context.Context, dir string, log *slog.Logger) ([]*process, error) {
	var all []*process
	for i := range d.nodes + d.gateways {
		o := d.member(i, dir)
		if i > 0 {
			o.join = []string{all[0].listeners.gossip.Addr().String()}
		}
		p, err := o.start(ctx, log)
		if err != nil {
			return all, err
		}
		all = append(all, p)
	}
	return all, nil
}

// member returns the settings of the i-th member: nodes come first.
func (d *dev) member(i int, dir string) *options {
	o := d.options
	first := i == 0
	o.parts = parts{node: true}
	o.nodeID = fmt.Sprintf("n%d", i+1)
	o.dataDir = filepath.Join(dir, o.nodeID)
	if i >= d.nodes {
		i -= d.nodes
		o.parts = parts{gateway: true}
		o.nodeID = fmt.Sprintf("g%d", i+1)
		if i > 0 {
			o.httpAddr = "127.0.0.1:0"
		}
	} else if !first {
		o.grpcAddr = "127.0.0.1:0"
	}
	if !first {
		o.adminAddr = "127.0.0.1:0"
	}
	if d.regions > 1 {
		o.region = fmt.Sprintf("r%d", i%d.regions+1)
	}
	return &o
}

// runAll runs the members until ctx is done or one of them fails.
func runAll(ctx context.Context, all []*process, ready func() error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range all {
		group.Go(func() error {
			if err := p.run(ctx, func() {}); err != nil {
				return fmt.Errorf("member %s: %w", p.id, err)
			}
			return nil
		})
	}
	group.Go(ready)
	return group.Wait()
}

// announce waits until the gateways know all nodes, and tells how to use them.
func (d *dev) announce(ctx context.Context, all []*process, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, devTimeout)
	defer cancel()
	for _, p := range all {
		if err := p.awaitNodes(ctx, d.nodes); err != nil {
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return fmt.Errorf("member %s does not know all %d nodes after %v", p.id, d.nodes, devTimeout)
		}
	}
	for _, p := range all[d.nodes:] {
		fmt.Fprintf(stdout, "GOPROXY=http://%s  # %s in region %s\n", p.listeners.http.Addr(), p.id, p.place)
	}
	first := *all[0].listeners
	first.http = all[d.nodes].listeners.http
	fmt.Fprintf(stdout, "%s\n", first.ready())
	return nil
}
