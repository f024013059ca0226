package main

import (
	"cmp"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/ringmod/ringmod/node/polite"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/ring"
)

// parts are what a process consists of.
type parts struct{ node, gateway bool }

// options are the settings of a process, by flag, environment variable or
// configuration file.
type options struct {
	parts parts

	httpAddr, grpcAddr, gossipAddr, adminAddr string

	cluster       string
	join          []string
	viewFrom      []string
	advertiseAddr string
	gossipKeyFile string
	peerCert      string
	peerKey       string
	peerCA        string
	insecure      bool
	// gossipAnywhere lets a process that nobody was told how to join take another
	// gossip port when the default one is in use.
	gossipAnywhere bool

	// founding: the cluster begins with this process, so there is nothing to be moved
	// to a node before it is of use.
	founding bool

	nodeID, region, zone string
	weight, replicas     int
	durability           int
	dataDir, diskLimit   string
	limit                store.Limit // diskLimit

	upstream, private string
	upstreamOfGo      bool // upstream is what 'go env' says and not a setting of ours
	credentials       string
	gitConfig         string
	sumdbs            []string
	offline           bool
	contact           string
	hostRate          float64
	hostRequests      int

	tlsCert, tlsKey string
	hookSecretFile  string

	logLevel, logFormat string
	config              string
}

const defaultDiskLimit = "90%"

// bind offers the flags that a process of these parts has.
func (o *options) bind(flags *pflag.FlagSet) {
	flags.SortFlags = false
	o.bindAddrs(flags)
	o.bindMember(flags)
	o.bindRing(flags)
	if o.parts.node {
		o.bindNode(flags)
	}
	o.bindSources(flags)
	if o.parts.gateway {
		flags.StringVar(&o.tlsCert, "tls-cert", "", "certificate `file`: serve developers over HTTPS")
		flags.StringVar(&o.tlsKey, "tls-key", "", "key `file` of --tls-cert")
		o.bindHooks(flags)
	}
	o.bindCommon(flags)
}

func (o *options) bindHooks(flags *pflag.FlagSet) {
	flags.StringVar(&o.hookSecretFile, "hook-secret-file", "", "`file` of secrets, one a line: listen to code hosts that tell of pushes (POST /-/hooks/push)")
}

func (o *options) bindAddrs(flags *pflag.FlagSet) {
	if o.parts.gateway {
		flags.StringVar(&o.httpAddr, "http-addr", "127.0.0.1:8080", "`address` of the GOPROXY protocol, /healthz, /readyz and the web page")
	}
	if o.parts.node {
		flags.StringVar(&o.grpcAddr, "grpc-addr", "127.0.0.1:8082", "`address` of the node's gRPC services")
	}
	flags.StringVar(&o.adminAddr, "admin-addr", "127.0.0.1:8081", "`address` of /metrics, /debug/pprof, /healthz and /readyz")
}

func (o *options) bindMember(flags *pflag.FlagSet) {
	flags.StringVar(&o.gossipAddr, "gossip-addr", "127.0.0.1:8083", "`address` of cluster membership, UDP and TCP")
	flags.StringVar(&o.advertiseAddr, "advertise-addr", "", "`IP` that other members reach this one at (default: the one it listens on)")
	flags.StringArrayVar(&o.join, "join", nil, "`host:port` where a member gossips, repeatable; names are resolved anew at each attempt")
	if o.parts.gateway && !o.parts.node {
		flags.StringArrayVar(&o.viewFrom, "view-from", nil, "`host:port` of a node's gRPC, repeatable: learn the members from there instead of by gossip")
	}
	flags.StringVar(&o.nodeID, "node-id", "", "`name` of this member (default: the host name, which a node keeps in its data folder)")
	flags.StringVar(&o.region, "region", "default", "`region` of this process")
	flags.StringVar(&o.zone, "zone", "", "`zone` of this process within its region")
	flags.StringVar(&o.gossipKeyFile, "gossip-key-file", "", "`file` of keys that encrypt gossip, the first one is used; see 'ringmod certs'")
	flags.StringVar(&o.peerCert, "peer-cert", "", "certificate `file` of this member; see 'ringmod certs'")
	flags.StringVar(&o.peerKey, "peer-key", "", "key `file` of --peer-cert")
	flags.StringVar(&o.peerCA, "peer-ca", "", "`file` of the authorities that sign members' certificates")
	flags.BoolVar(&o.insecure, "insecure", false, "listen beyond loopback without certificates or a gossip key: whoever reaches us is believed")
}

// bindRing offers what must be the same at all members.
func (o *options) bindRing(flags *pflag.FlagSet) {
	flags.StringVar(&o.cluster, "cluster", defaultCluster, "`name` of the cluster; members of another one are refused")
	flags.IntVar(&o.replicas, "replicas", ring.DefaultSpec().Replicas, "`copies` in each region, 1 to 5, limited to the nodes present; the same at all members")
}

func (o *options) bindNode(flags *pflag.FlagSet) {
	flags.IntVar(&o.weight, "weight", 1, "`share` of its region's objects relative to other nodes, 1 to 16")
	o.bindDurability(flags)
	flags.StringVar(&o.dataDir, "data-dir", "", "`folder` of the node's objects and index (default: ringmod in the user's cache folder)")
	flags.StringVar(&o.diskLimit, "disk-limit", defaultDiskLimit, "`size` of that folder: bytes such as 20GiB, or a share of what others leave of its file system")
}

func (o *options) bindDurability(flags *pflag.FlagSet) {
	flags.IntVar(&o.durability, "durability", 1, "`nodes` of the region that must have a module before the download that has it fetched ends: 1, or 2 for an archive")
}

func (o *options) bindSources(flags *pflag.FlagSet) {
	what := "where modules come from"
	if !o.parts.node {
		what = "where public modules come from when no node can be reached"
	}
	flags.StringVar(&o.upstream, "upstream", "", what+", in GOPROXY `syntax` (default: what 'go env GOPROXY' says)")
	flags.StringVar(&o.private, "private", "", "`patterns` of private modules, as in GOPRIVATE (default: what 'go env GOPRIVATE' says)")
	if o.parts.node {
		flags.StringVar(&o.credentials, "credentials", "", "YAML `file`: which token, password or SSH key opens the repositories of which private modules")
		flags.StringVar(&o.gitConfig, "git-config", "", "`file` that configures git where it fetches modules: credential helpers, authorities (default: $GIT_CONFIG_GLOBAL)")
	}
	flags.StringArrayVar(&o.sumdbs, "sumdb", []string{"sum.golang.org"}, "checksum `database` in GOSUMDB syntax, repeatable; the first one verifies; 'off' for none")
	flags.BoolVar(&o.offline, "offline", false, "never contact an upstream")
	flags.StringVar(&o.contact, "contact", "", "`URL or mail address` in the User-Agent towards upstreams, for those who run them")
	flags.Float64Var(&o.hostRate, "host-rate", polite.DefaultRate, "`requests` a second that the whole cluster sends to one upstream host; the same at all members")
	flags.IntVar(&o.hostRequests, "host-requests", polite.DefaultAtOnce, "`requests` at once that the whole cluster has at one upstream host; the same at all members")
}

func (o *options) bindCommon(flags *pflag.FlagSet) {
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
	if o.parts.node && o.dataDir == "" {
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
		switch {
		case err != nil && !o.parts.node: // its last resort, which it can do without
			list = "off"
		case err != nil:
			return usagef("asking the go command for GOPROXY: %w; give --upstream", err)
		}
		o.upstream, o.upstreamOfGo = list, true
	}
	if o.private == "" {
		o.private, _ = goEnv("GOPRIVATE") // without a go command nothing is private unless said
	}
	if o.gitConfig == "" {
		o.gitConfig = os.Getenv("GIT_CONFIG_GLOBAL")
	}
	for _, check := range []func() error{o.checkSecurity, o.checkAdvertise, o.checkSeeds, o.checkSources, o.checkPlacement, o.checkDisk} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkSecurity refuses to talk to other machines without knowing who they are.
func (o *options) checkSecurity() error {
	given, err := checkPeerFiles(o.peerCert, o.peerKey, o.peerCA)
	if err != nil || o.insecure {
		return err
	}
	if o.parts.node && !given && !isLoopback(o.grpcAddr) {
		return usagef("--grpc-addr %s is reachable from other machines: give --peer-cert, --peer-key and --peer-ca "+
			"(see 'ringmod certs'), use a loopback address, or say --insecure", o.grpcAddr)
	}
	if o.gossips() && o.gossipKeyFile == "" && !isLoopback(o.gossipAddr) {
		return usagef("--gossip-addr %s is reachable from other machines: give --gossip-key-file "+
			"(see 'ringmod certs'), use a loopback address, or say --insecure", o.gossipAddr)
	}
	return nil
}

// gossips reports whether the process takes part in gossip.
func (o *options) gossips() bool { return len(o.viewFrom) == 0 }

// isLoopback reports whether only this machine can reach addr. What is no
// address at all is for the listener to refuse.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err != nil || host == "localhost" || ip != nil && ip.IsLoopback()
}

func (o *options) checkAdvertise() error {
	if o.advertiseAddr != "" {
		ip, err := netip.ParseAddr(o.advertiseAddr)
		if err != nil || ip.IsUnspecified() || ip.IsMulticast() {
			return usagef("--advertise-addr %q is not an IP that others can reach this machine at", o.advertiseAddr)
		}
		return nil
	}
	for _, each := range []struct {
		used       bool
		flag, addr string
	}{{o.parts.node, "grpc-addr", o.grpcAddr}, {o.gossips(), "gossip-addr", o.gossipAddr}} {
		host, _, err := net.SplitHostPort(each.addr)
		ip := net.ParseIP(host)
		if each.used && err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
			return usagef("--%s %s listens on all addresses: say with --advertise-addr which IP the other members reach", each.flag, each.addr)
		}
	}
	return nil
}

// advertise returns --advertise-addr, invalid where there is none.
func (o *options) advertise() netip.Addr {
	ip, _ := netip.ParseAddr(o.advertiseAddr) // checkAdvertise has seen it
	return ip
}

func (o *options) checkSeeds() error {
	for flag, seeds := range map[string][]string{"join": o.join, "view-from": o.viewFrom} {
		for _, seed := range seeds {
			host, port, err := net.SplitHostPort(seed)
			if err != nil || host == "" || port == "" {
				return usagef("--%s %q is not of the form host:port", flag, seed)
			}
		}
	}
	if len(o.join) > 0 && len(o.viewFrom) > 0 {
		return usagef("--join and --view-from exclude each other: a gateway learns the members in one way")
	}
	return nil
}

// checkPlacement holds the settings that a cluster places objects by against
// the rules of ring.
func (o *options) checkPlacement() error {
	if err := o.spec().Validate(); err != nil {
		return usagef("--replicas: %w", err)
	}
	if o.durability > 2 || o.durability < 1 && o.parts.node {
		return usagef("--durability must be 1 or 2, not %d", o.durability)
	}
	if o.durability > o.replicas {
		return usagef("--durability %d needs --replicas %d or more, not %d", o.durability, o.durability, o.replicas)
	}
	if err := o.member("this", "127.0.0.1:1").Check(); err != nil {
		return usagef("--region, --zone, --weight: %w", err)
	}
	return nil
}

func (o *options) checkDisk() (err error) {
	if o.limit, err = store.ParseLimit(cmp.Or(o.diskLimit, defaultDiskLimit)); err != nil {
		return usagef("--disk-limit %q: %w", o.diskLimit, err)
	}
	return nil
}

func (o *options) spec() ring.Spec {
	spec := ring.DefaultSpec()
	spec.Replicas = o.replicas
	return spec
}

// member returns this process as the cluster sees it; addr is where its gRPC
// services are reached.
func (o *options) member(id, addr string) ring.Member {
	m := ring.Member{ID: id, Epoch: 1, State: ring.Active, Role: ring.Gateway, Region: o.region, Zone: o.zone, Weight: 1}
	if o.parts.node {
		m.Role, m.Weight, m.Addr = ring.Node, o.weight, addr
		if !o.founding {
			m.State = ring.Joining // or whatever it was before
		}
	}
	return m
}

const nodeIDFile = "node-id"

// identity returns the member's id. A node keeps its own in the data folder,
// where it stays the same when the host is renamed.
func (o *options) identity() (string, error) {
	if !o.parts.node {
		return o.newIdentity()
	}
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
	if id, err = o.newIdentity(); err != nil {
		return "", err
	}
	return id, os.WriteFile(file, []byte(id+"\n"), 0o644)
}

// newIdentity is the id that was given, or one from the host's name. Gateways
// come and go, several on a host: theirs is drawn anew at each start.
func (o *options) newIdentity() (string, error) {
	id := o.nodeID
	if id == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", usagef("no host name (%w); give --node-id", err)
		}
		if id = host; !o.parts.node {
			id += "-gateway-" + strings.ToLower(rand.Text()[:6])
		}
	}
	if err := o.member(id, "127.0.0.1:1").Check(); err != nil {
		return "", usagef("--node-id: %w", err)
	}
	return id, nil
}
