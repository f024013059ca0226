// Bench measures ringmod beside nginx on this machine and prints ratios.
//
// It promises whoever changes ringmod a comparison that survives a noisy
// machine: both sides serve the same files on loopback, their runs alternate,
// and a goal is judged by the median of the ratios of neighbouring runs, never
// by a figure on its own. The rows:
//
//	warm      .info, .mod and @v/list, requests a second     at least 0.70 of nginx
//	zip       a zip of 69 MB, GB a second, 1 and 8 clients   at least 0.90 of nginx
//	cluster   a gateway and a node as two processes: see below
//	download  go mod download, everything stored             at most 1.05 of nginx
//	cold      go mod download, nothing stored                at most 1.15 of going upstream directly
//	herd      200 cold requests at once for a zip of 7 MB    at most 2.00 of nginx's proxy_cache with lock
//
// The row cluster measures zips that cross gRPC (each one for the first time in
// the life of a gateway), GB a second: at least 2.00 of a gateway and a node that
// use grpc-go's default codec and messages of 64 KiB. Then .info, requests a
// second: at least 0.22 of nginx where the gateway has them not in memory, 0.80
// where it has. And the peak memory of a gateway from which 64 connections read
// zips at once, fast and slowly: at most 120 MB. Zips that it has read lately are
// shown as well.
//
// Each measure is printed as min/median/max for either side, with the CPU
// seconds and the peak memory that the server took (summed over its processes),
// and with the share of the machine that other work took meanwhile. Pairs of
// runs with more than 12 % of that are repeated a few times; where the column
// still shows more, do not trust the row.
//
// It exits with 1 when a row could not be measured, and when a goal is missed
// only if -check is set. It needs Linux (/proc) and nginx, and takes wrk where
// there is one; as root on Debian it installs both. The rows download and cold
// need the module proxy of `go env GOPROXY`, whose name is never printed; they
// are skipped when it cannot be reached, and fail instead if CI=true. Children
// and temporary files are gone when it ends, also after SIGINT and SIGTERM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// errSkipped marks a row that this machine cannot measure.
var errSkipped = errors.New("skipped")

// options are the flags. The defaults are in parse.
type options struct {
	rows     []string
	runs     int
	time     time.Duration
	workload workload
	ringmod  string
	logLevel string
	profile  string
	check    bool
}

// bench is what the rows share: the options, the tools found and a folder that
// is removed at the end.
type bench struct {
	options

	start time.Time
	self  string // path of this program
	dir   string // temporary, on a disk
	cache string // temporary, for module caches: in memory where there is a tmpfs
	nginx string // path of the program
	wrk   string // path of the program; empty means our own client
	proxy proxy  // what go env GOPROXY says
	out   io.Writer
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if ok, err := naive(ctx, args, stdout); ok {
		if err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		return 0
	}
	opts, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return 2
	}
	b := &bench{options: opts, start: time.Now(), out: stdout}
	defer b.close()
	if err := b.prepare(ctx, stderr); err != nil {
		fmt.Fprintln(stderr, "bench:", b.proxy.redact(err.Error()))
		return 1
	}
	return b.runRows(ctx, stderr)
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	rows := fs.String("rows", strings.Join(rowNames(), ","), "rows to run, separated by commas")
	load := fs.String("workload", "small", "what go mod download downloads: small (100 modules) or prom (249)")
	fs.IntVar(&o.runs, "runs", 3, "runs of each side")
	fs.DurationVar(&o.time, "time", 3*time.Second, "length of a run in the rows warm, zip and cluster")
	fs.StringVar(&o.ringmod, "ringmod", "", "path of the ringmod program (default: build ./cmd/ringmod)")
	fs.StringVar(&o.logLevel, "log-level", "warn", "ringmod's log level; warn is without access lines, as nginx runs here")
	fs.StringVar(&o.profile, "profile", "", "file for a CPU profile of our side in the row cluster, for cmd/ringmod/default.pgo; it slows that side down")
	fs.BoolVar(&o.check, "check", false, "exit with 1 when a goal is missed")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.rows = strings.Split(*rows, ",")
	var known bool
	o.workload, known = findWorkload(*load)
	err := o.validate(known)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
	}
	return o, err
}

func (o options) validate(workloadKnown bool) error {
	for _, name := range o.rows {
		if !slices.Contains(rowNames(), name) {
			return fmt.Errorf("no row named %q: take some of %s", name, strings.Join(rowNames(), ","))
		}
	}
	switch {
	case !workloadKnown:
		return errors.New("-workload is small or prom")
	case o.runs < 1:
		return errors.New("-runs must be at least 1")
	case o.time < time.Second:
		return errors.New("-time must be at least 1s")
	}
	return nil
}

// prepare makes the folders, finds the tools and builds ringmod.
func (b *bench) prepare(ctx context.Context, stderr io.Writer) error {
	var err error
	if b.dir, err = os.MkdirTemp("", "ringmod-bench-"); err != nil {
		return fmt.Errorf("making a temporary folder: %w", err)
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	b.cache = b.dir
	if dir, err := os.MkdirTemp("/dev/shm", "ringmod-bench-"); err == nil {
		b.cache = dir
	}
	if b.proxy, err = goProxy(ctx); err != nil {
		return err
	}
	if b.nginx, b.wrk, err = findTools(ctx, stderr); err != nil {
		return err
	}
	if b.ringmod != "" {
		b.ringmod, err = filepath.Abs(b.ringmod)
		return err
	}
	b.ringmod = filepath.Join(b.dir, "ringmod")
	build := exec.CommandContext(ctx, "go", "build", "-o", b.ringmod, "github.com/ringmod/ringmod/cmd/ringmod")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building ringmod: %w: %s", err, text)
	}
	return nil
}

func (b *bench) close() {
	for _, dir := range []string{b.dir, b.cache} {
		if dir != "" {
			os.RemoveAll(dir)
		}
	}
}

// row is one line of the list in the package comment.
type row struct {
	name string
	run  func(context.Context, *bench) ([]contest, error)
}

func rows() []row {
	return []row{
		{"warm", warmRow},
		{"zip", zipRow},
		{"cluster", clusterRow},
		{"download", downloadRow},
		{"cold", coldRow},
		{"herd", herdRow},
	}
}

func rowNames() []string {
	var names []string
	for _, r := range rows() {
		names = append(names, r.name)
	}
	return names
}

// runRows runs what -rows names, in the order of the list, and returns the
// exit status.
func (b *bench) runRows(ctx context.Context, stderr io.Writer) int {
	status := 0
	for _, r := range rows() {
		if !slices.Contains(b.rows, r.name) || ctx.Err() != nil {
			continue
		}
		contests, err := r.run(ctx, b)
		missed := printContests(b.out, r.name, contests)
		switch {
		case errors.Is(err, errSkipped) && os.Getenv("CI") != "true":
			fmt.Fprintf(b.out, "%s: %s\n", r.name, b.proxy.redact(err.Error()))
		case err != nil:
			fmt.Fprintf(stderr, "bench: %s: %s\n", r.name, b.proxy.redact(err.Error()))
			status = 1
		case missed && b.check:
			status = 1
		}
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "bench: interrupted")
		return 1
	}
	fmt.Fprintf(b.out, "\ntook %s\n", time.Since(b.start).Round(time.Second))
	return status
}
