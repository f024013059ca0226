package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/node/sumdb"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// warmer is the command warm.
type warmer struct {
	asker

	database string
	spec     sumdb.Spec
	parallel int
}

func warmCommand() *cobra.Command {
	w := &warmer{}
	cmd := &cobra.Command{
		Use:   "warm FILE|MODULE@VERSION...",
		Short: "Fetch modules ahead, so that nobody has to wait for them",
		Long: "warm has a cluster fetch what it does not hold yet: the modules of a go.mod with everything that\n" +
			"'go mod download' and 'go build' need of its graph, those of a go.sum, those of a list (a line for each\n" +
			"'module version', comments behind #, '-' for standard input), or single versions. What is held is\n" +
			"not read again, so that a warm that was interrupted goes on where it was.\n\n" +
			"It asks as a gateway in the region of the member at --addr would. The exit status is 1 when something\n" +
			"could not be fetched.",
		Example: "  ringmod warm go.mod\n" +
			"  ringmod warm ~/src/*/go.sum --addr node1.example.com:8082\n" +
			"  ringmod warm golang.org/x/mod@v0.30.0",
		Args: needWanted,
		RunE: func(cmd *cobra.Command, args []string) error {
			todo, err := w.wanted(args, cmd.InOrStdin())
			if err != nil {
				return err
			}
			return w.run(cmd.Context(), todo, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	w.bindWarm(cmd)
	return cmd
}

func needWanted(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("name a go.mod, a go.sum, a list, or a module@version")
	}
	return nil
}

func (w *warmer) bindWarm(cmd *cobra.Command) {
	w.bind(cmd)
	cmd.Flags().IntVar(&w.parallel, "parallel", 16, "`files` that are fetched at the same time")
	cmd.Flags().StringVar(&w.database, "sumdb", "sum.golang.org", "checksum `database` whose proofs go with the modules, GOSUMDB syntax; off: none")
	cmd.Flags().Lookup("json").Usage = "print a line of JSON for each file"
	cmd.Flags().Lookup("timeout").Usage = "how `long` to wait for the cluster"
}

// wanted reads what the arguments name, and checks the flags.
func (w *warmer) wanted(args []string, stdin io.Reader) (todo *wanted, err error) {
	if w.parallel < 1 || w.parallel > 256 {
		return nil, usagef("--parallel %d: want 1 to 256", w.parallel)
	}
	if w.spec, err = sumdb.ParseSpec(w.database); err != nil {
		return nil, usagef("--sumdb: %w", err)
	}
	return readWanted(args, stdin)
}

// run fetches what is wanted.
func (w *warmer) run(ctx context.Context, todo *wanted, out, progress io.Writer) error {
	nodes, stop, err := w.join(ctx)
	if err != nil {
		return err
	}
	defer stop()
	v := w.view(out, progress, "fetched")
	targets, err := w.targets(ctx, nodes, todo, v)
	if err != nil {
		return err
	}
	w.fetch(ctx, nodes, targets, v)
	err = w.prove(ctx, &sums{nodes: nodes, spec: w.spec}, todo.modules(), v)
	if ctx.Err() != nil {
		return errors.New("interrupted; the same command goes on")
	}
	return errors.Join(v.end(), err)
}

func (a *asker) view(out, progress io.Writer, verb string) *warmView {
	v := &warmView{json: a.json, out: out, verb: verb}
	if isTerminal(progress) && !a.json {
		v.progress = progress
	}
	return v
}

// targets returns the files that are wanted, those of module graphs included.
func (w *warmer) targets(ctx context.Context, nodes *cluster.Cluster, todo *wanted, v *warmView) ([]target.Target, error) {
	for _, f := range todo.goMods {
		err := todo.graph(ctx, f, func(ctx context.Context, m module.Version) ([]byte, error) {
			v.drawGraph(len(todo.zips))
			return readMod(ctx, nodes, m)
		})
		if err != nil {
			return nil, err
		}
	}
	targets, err := todo.targets()
	v.total, v.versions = len(targets), len(todo.zips)
	if !w.spec.Off() {
		v.total += len(todo.zips)
	}
	return targets, err
}

// fetch fetches files side by side.
func (w *warmer) fetch(ctx context.Context, nodes *cluster.Cluster, targets []target.Target, v *warmView) {
	var group errgroup.Group
	group.SetLimit(w.parallel)
	for _, t := range targets {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			held, size, err := warm(ctx, nodes, t)
			v.done(t, held, size, err)
			return nil
		})
	}
	_ = group.Wait()
}

// prove fetches what go commands need to check the files against the checksum
// database.
func (w *warmer) prove(ctx context.Context, s *sums, modules []module.Version, v *warmView) error {
	if w.spec.Off() {
		return nil
	}
	var group errgroup.Group
	group.SetLimit(w.parallel)
	var mu sync.Mutex // of records
	var records []record
	for _, m := range modules {
		t, err := lookupOf(w.spec.Name, m)
		if err != nil || ctx.Err() != nil {
			continue
		}
		group.Go(func() error {
			r, size, err := s.lookup(ctx, t, m)
			v.done(t, err == nil, size, err)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				records = append(records, r)
			}
			return nil
		})
	}
	_ = group.Wait()
	if err := s.prove(ctx, records); err != nil {
		return fmt.Errorf("proving the checksums: %w", err)
	}
	return nil
}

// warm makes sure that t is held.
func warm(ctx context.Context, nodes *cluster.Cluster, t target.Target) (held bool, size int64, err error) {
	obj, err := nodes.Get(ctx, cache.Request{Target: t, Mode: cache.AllowFill})
	if err != nil {
		return false, 0, err
	}
	defer obj.Body.Close()
	if obj.Source == cache.Disk || obj.Source == cache.Memory { // it need not be read
		return true, max(0, obj.Size), nil
	}
	size, err = io.Copy(io.Discard, obj.Body)
	return false, size, err
}

func readMod(ctx context.Context, nodes *cluster.Cluster, m module.Version) ([]byte, error) {
	t, err := target.ForVersion(m, target.Mod)
	if err != nil {
		return nil, err
	}
	return readSmall(ctx, nodes, t)
}

// join finds the cluster of the member at --addr, and asks it as a gateway in that
// member's region.
func (w *warmer) join(ctx context.Context) (nodes *cluster.Cluster, stop func(), err error) {
	name, region, err := w.where(ctx)
	if err != nil {
		return nil, nil, err
	}
	creds, err := w.credentials()
	if err != nil {
		return nil, nil, err
	}
	follower, err := member.NewFollower(member.FollowerConfig{Cluster: name, From: []string{w.addr}, Credentials: creds.Client})
	if err != nil {
		return nil, nil, err
	}
	others := peers.New(peers.Config{Self: "warm", Region: region, View: follower, Credentials: creds.Client})
	nodes = cluster.New(cluster.Config{Cluster: name, Region: region, Peers: others, View: follower, Logger: slog.New(slog.DiscardHandler)})
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	for _, run := range []task{follower.Run, others.Run, nodes.Run} {
		group.Go(func() error { return run(running) })
	}
	stop = func() {
		cancel()
		_ = group.Wait()
	}
	patience := time.NewTimer(w.timeout)
	defer patience.Stop()
	select {
	case <-follower.Joined():
		return nodes, stop, nil
	case <-patience.C:
		err = fmt.Errorf("%s did not tell who is in the cluster within %v; give more time with --timeout", w.addr, w.timeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	stop()
	return nil, nil, err
}

// where asks the member at --addr for the name of its cluster and its region.
func (w *warmer) where(ctx context.Context) (name, region string, err error) {
	var way dialer
	conn, err := w.dialMember(&way)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if name, region, err = whereIs(ctx, conn); err != nil {
		return "", "", w.explain(err, way.failure())
	}
	return name, region, nil
}

func whereIs(ctx context.Context, conn grpc.ClientConnInterface) (name, region string, err error) {
	view, err := ringmodv1.NewClusterServiceClient(conn).GetView(ctx, &ringmodv1.GetViewRequest{})
	if err != nil {
		return "", "", err
	}
	status, err := ringmodv1.NewAdminServiceClient(conn).Status(ctx, &ringmodv1.StatusRequest{Local: true})
	if err != nil {
		return "", "", err
	}
	for _, m := range status.GetMembers() {
		region = m.GetMember().GetRegion()
	}
	return view.GetView().GetCluster(), region, nil
}

// warmView shows how far a warm is.
type warmView struct {
	json     bool
	out      io.Writer
	progress io.Writer // of a terminal; nil: none
	verb     string    // what is done with files
	total    int
	versions int

	mu             sync.Mutex
	known          map[module.Version]bool // of expect
	sizes          map[string]int64        // of expect
	ready, fetched int
	bytes          int64
	failed         int
	drawn          time.Time
}

// done notes a file.
func (v *warmView) done(t target.Target, held bool, size int64, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ready++
	size += v.sizes[t.String()]
	switch {
	case err != nil && excused(t, err):
	case err != nil:
		v.failed++
		v.say(t, "failed", size, err)
	case held:
		v.say(t, "held", size, nil)
	default:
		v.fetched++
		v.bytes += size
		v.say(t, v.verb, size, nil)
	}
	if now := time.Now(); v.progress != nil && now.Sub(v.drawn) > 100*time.Millisecond {
		v.drawn = now
		v.bar()
	}
}

// expect counts a file that is yet to be dealt with.
func (v *warmView) expect(t target.Target, size int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.total++
	if v.known == nil {
		v.known, v.sizes = map[module.Version]bool{}, map[string]int64{}
	}
	v.sizes[t.String()] = size
	if t.Path != "" && !v.known[t.Module()] {
		v.known[t.Module()] = true
		v.versions++
	}
}

// excused tells whether nobody misses what could not be had: the record of a
// module that is private, or of a database that is not served.
func excused(t target.Target, err error) bool {
	reason := cache.ReasonOf(err)
	return t.Kind == target.SumdbLookup && (reason == cache.Denied || reason == cache.NotCached)
}

// say prints what programs read of each file, and people of failures.
func (v *warmView) say(t target.Target, result string, size int64, err error) {
	switch {
	case v.json:
		line := map[string]any{"target": t.String(), "result": result, "bytes": size}
		if err != nil {
			line["error"] = words(err.Error())
		}
		_ = json.NewEncoder(v.out).Encode(line)
	case err != nil:
		v.clear()
		fmt.Fprintf(v.out, "%s: %s\n", t, words(err.Error()))
	}
}

func (v *warmView) clear() {
	if v.progress != nil {
		fmt.Fprint(v.progress, "\r\x1b[K")
	}
}

// drawGraph shows that a module graph is being read.
func (v *warmView) drawGraph(found int) {
	if v.progress != nil && time.Since(v.drawn) > 100*time.Millisecond {
		v.drawn = time.Now()
		v.clear()
		fmt.Fprintf(v.progress, "reading the module graph: %s", number(found, "version", "versions"))
	}
}

func (v *warmView) bar() {
	const width = 24
	full := width * v.ready / max(1, v.total)
	v.clear()
	fmt.Fprintf(v.progress, "[%s%s] %d of %d  %d %s, %s  %d failed", strings.Repeat("=", full), strings.Repeat(" ", width-full),
		v.ready, v.total, v.fetched, v.verb, size(uint64(v.bytes)), v.failed)
}

// end prints the sum, and returns an error when something failed.
func (v *warmView) end() error {
	v.clear()
	if !v.json {
		fmt.Fprintf(v.out, "%s of %s: %d %s (%s), %d held already, %d failed.\n", number(v.total, "file", "files"),
			number(v.versions, "module version", "module versions"), v.fetched, v.verb, size(uint64(v.bytes)), v.total-v.fetched-v.failed, v.failed)
	}
	if v.failed > 0 {
		return fmt.Errorf("%s could not be %s", number(v.failed, "file", "files"), v.verb)
	}
	return nil
}
