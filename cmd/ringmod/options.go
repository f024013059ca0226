package main

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/ringmod/ringmod/ring"
)

// options are the settings of a process, by flag, environment variable or
// configuration file.
type options struct {
	httpAddr, grpcAddr, gossipAddr, adminAddr string

	nodeID, region, zone string
	weight, replicas     int
	dataDir              string

	upstream, private string
	upstreamOfGo      bool // upstream is what 'go env' says and not a setting of ours
	sumdbs            []string
	offline           bool
	contact           string

	tlsCert, tlsKey string

	logLevel, logFormat string
	config              string
}

func (o *options) bind(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringVar(&o.httpAddr, "http-addr", "127.0.0.1:8080", "`address` of the GOPROXY protocol, /healthz, /readyz and the web page")
	flags.StringVar(&o.grpcAddr, "grpc-addr", "127.0.0.1:8082", "`address` of the node's gRPC services")
	flags.StringVar(&o.adminAddr, "admin-addr", "127.0.0.1:8081", "`address` of /metrics, /debug/pprof, /healthz and /readyz")
	flags.StringVar(&o.gossipAddr, "gossip-addr", "127.0.0.1:8083", "`address` for cluster membership; a single process does not open it")
	flags.StringVar(&o.dataDir, "data-dir", "", "`folder` of the node's objects and index (default: ringmod in the user's cache folder)")
	flags.StringVar(&o.nodeID, "node-id", "", "`name` of this node (default: the host name, kept in the data folder)")
	flags.StringVar(&o.region, "region", "default", "`region` of this process")
	flags.StringVar(&o.zone, "zone", "", "`zone` of this process within its region")
	flags.IntVar(&o.weight, "weight", 1, "`share` of its region's objects relative to other nodes, 1 to 16")
	flags.IntVar(&o.replicas, "replicas", ring.DefaultSpec().Replicas, "`copies` in each region, 1 to 5, limited to the nodes present")
	flags.StringVar(&o.upstream, "upstream", "", "where modules come from, in GOPROXY `syntax` (default: what 'go env GOPROXY' says)")
	flags.StringVar(&o.private, "private", "", "`patterns` of private modules, as in GOPRIVATE (default: what 'go env GOPRIVATE' says)")
	flags.StringArrayVar(&o.sumdbs, "sumdb", []string{"sum.golang.org"}, "checksum `database` in GOSUMDB syntax, repeatable; the first one verifies; 'off' for none")
	flags.BoolVar(&o.offline, "offline", false, "never contact an upstream")
	flags.StringVar(&o.contact, "contact", "", "`URL` for the User-Agent towards upstreams")
	flags.StringVar(&o.tlsCert, "tls-cert", "", "certificate `file`: serve developers over HTTPS")
	flags.StringVar(&o.tlsKey, "tls-key", "", "key `file` of --tls-cert")
	flags.StringVar(&o.logLevel, "log-level", "info", "`level`: debug, info, warn or error")
	flags.StringVar(&o.logFormat, "log-format", "", "`format`: text or json (default: text on a terminal, else json)")
	flags.StringVar(&o.config, "config", "", "YAML `file` with any of these settings, keyed by flag name")
}

// resolve fills in what depends on the machine and checks what can be checked
// without I/O on the network.
func (o *options) resolve() error {
	if (o.tlsCert == "") != (o.tlsKey == "") {
		return usagef("--tls-cert and --tls-key go together")
	}
	if o.tlsCert != "" {
		if _, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey); err != nil {
			return usagef("--tls-cert, --tls-key: %w", err)
		}
	}
	if o.dataDir == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return usagef("no cache folder for this user (%w); give --data-dir", err)
		}
		o.dataDir = filepath.Join(dir, "ringmod")
	}
	if o.offline {
		o.upstream = "off"
	}
	if o.upstream == "" {
		list, err := goEnv("GOPROXY")
		if err != nil {
			return usagef("asking the go command for GOPROXY: %w; give --upstream", err)
		}
		o.upstream, o.upstreamOfGo = list, true
	}
	if o.private == "" {
		o.private, _ = goEnv("GOPRIVATE") // without a go command nothing is private unless said
	}
	if err := checkLoopback(o.grpcAddr); err != nil {
		return err
	}
	if err := o.checkSources(); err != nil {
		return err
	}
	return o.checkPlacement()
}

// checkPlacement holds the settings that a cluster places objects by against
// the rules of ring. A single process owns everything.
func (o *options) checkPlacement() error {
	spec := ring.DefaultSpec()
	spec.Replicas = o.replicas
	if err := spec.Validate(); err != nil {
		return usagef("--replicas: %w", err)
	}
	if err := o.member("this").Check(); err != nil {
		return usagef("--region, --zone, --weight: %w", err)
	}
	return nil
}

// member returns this process as a cluster would see it.
func (o *options) member(id string) ring.Member {
	return ring.Member{
		ID: id, Epoch: 1, State: ring.Active, Role: ring.Node,
		Region: o.region, Zone: o.zone, Weight: o.weight, Addr: o.grpcAddr,
	}
}

const nodeIDFile = "node-id"

// identity returns the node's id: the one kept in the data folder, which stays
// the same when the host is renamed, or a new one that is kept from now on.
func (o *options) identity() (string, error) {
	file := filepath.Join(o.dataDir, nodeIDFile)
	kept, err := os.ReadFile(file)
	id := strings.TrimSpace(string(kept))
	switch {
	case err == nil && id != "" && o.nodeID != "" && o.nodeID != id:
		return "", usagef("the data folder %s belongs to node %q, not %q; give --node-id %s or another --data-dir", o.dataDir, id, o.nodeID, id)
	case err == nil && id != "":
		return id, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "", err
	}
	id = o.nodeID
	if id == "" {
		if id, err = os.Hostname(); err != nil {
			return "", usagef("no host name (%w); give --node-id", err)
		}
	}
	if err := o.member(id).Check(); err != nil {
		return "", usagef("--node-id: %w", err)
	}
	return id, os.WriteFile(file, []byte(id+"\n"), 0o644)
}
