package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ringmod/ringmod/internal/identity"
)

// Files of a folder made by certs, beside a pair for each member and operator.
const (
	caFile     = "ca.pem"
	caKeyFile  = "ca-key.pem"
	gossipFile = "gossip.key"
)

const defaultCluster = "ringmod"

func certsCommand() *cobra.Command {
	c := &certs{}
	cmd := &cobra.Command{
		Use:   "certs DIR",
		Short: "Make a private CA, certificates and a gossip key for a cluster",
		Long: "certs fills DIR with what members of a cluster need to trust each other and nobody else:\n" +
			"a CA (ca.pem, ca-key.pem), a certificate with its key for each member and operator\n" +
			"(node-n1.pem, node-n1-key.pem), and a key for gossip (gossip.key).\n\n" +
			"What DIR holds already is used and kept; --renew makes the named certificates anew.\n" +
			"A member needs its own pair, ca.pem and gossip.key, and reads new files without a restart.\n" +
			"Whoever has ca-key.pem can be any member: keep it where none of them runs.",
		Example: "  ringmod certs certs --node n1 --node n2 --node n3 --gateway g1 --operator me\n" +
			"  ringmod certs certs --node n4\n" +
			"  ringmod certs certs --node n1 --renew",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usagef("name one folder: ringmod certs DIR")
			}
			c.dir = args[0]
			return c.make(cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&c.cluster, "cluster", defaultCluster, "`name` of the cluster")
	flags.StringArrayVar(&c.nodes, "node", nil, "`id` of a node, repeatable")
	flags.StringArrayVar(&c.gateways, "gateway", nil, "`id` of a gateway, repeatable")
	flags.StringArrayVar(&c.operators, "operator", nil, "`name` of a person who runs the cluster, repeatable")
	flags.BoolVar(&c.renew, "renew", false, "make certificates anew that are there already")
	return cmd
}

// certs makes the files of a cluster. It looks at all there is before it writes
// anything.
type certs struct {
	dir, cluster               string
	nodes, gateways, operators []string
	renew                      bool

	files  []file
	report []line
}

// file is one to write.
type file struct {
	name string
	data []byte
	mode fs.FileMode
}

// line tells of one file.
type line struct{ verb, name, what string }

func (c *certs) make(out io.Writer) error {
	whose, err := c.whose()
	if err != nil {
		return &usageError{err}
	}
	ca, err := c.authority()
	if err != nil {
		return err
	}
	for _, who := range whose {
		if err := c.certificate(ca, who); err != nil {
			return err
		}
	}
	if err := c.gossipKey(); err != nil {
		return err
	}
	if err := c.write(); err != nil {
		return err
	}
	c.print(out, whose)
	return nil
}

// whose returns the bearers of the certificates.
func (c *certs) whose() ([]identity.Identity, error) {
	var whose []identity.Identity
	members := map[string]bool{}
	for _, each := range []struct {
		role identity.Role
		ids  []string
	}{{identity.Node, c.nodes}, {identity.Gateway, c.gateways}, {identity.Operator, c.operators}} {
		for _, id := range each.ids {
			who := identity.Identity{Cluster: c.cluster, Role: each.role, ID: id}
			if err := who.Check(); err != nil {
				return nil, err
			}
			if strings.HasSuffix(id, "-key") {
				return nil, fmt.Errorf("%s: an id that ends in -key would have its certificate where another one has its key", who)
			}
			if slices.Contains(whose, who) || each.role != identity.Operator && members[id] {
				return nil, fmt.Errorf("%s: two members cannot have one id", who)
			}
			members[id] = members[id] || each.role != identity.Operator
			whose = append(whose, who)
		}
	}
	return whose, nil
}

func certFile(who identity.Identity) string { return string(who.Role) + "-" + who.ID + ".pem" }
func keyFile(who identity.Identity) string  { return string(who.Role) + "-" + who.ID + "-key.pem" }

// authority returns the CA of the folder, or a new one.
func (c *certs) authority() (*identity.CA, error) {
	cert, key, err := c.readPair(caFile, caKeyFile)
	if err != nil {
		return nil, err
	}
	verb := "kept"
	var ca *identity.CA
	if cert != nil {
		if ca, err = identity.ReadCA(cert, key); err != nil {
			return nil, fmt.Errorf("%s with %s: %w", c.path(caFile), c.path(caKeyFile), err)
		}
		if of := ca.Cluster(); of != "" && of != c.cluster {
			return nil, usagef("%s is the CA of cluster %s, not %s: give --cluster %s or another folder", c.path(caFile), of, c.cluster, of)
		}
	} else {
		verb = "made"
		if ca, err = identity.NewCA(c.cluster); err != nil {
			return nil, &usageError{err}
		}
		if cert, key, err = ca.PEM(); err != nil {
			return nil, err
		}
		c.add(file{caFile, cert, 0o644}, file{caKeyFile, key, 0o600})
	}
	c.tell(verb, caFile, "CA of cluster "+c.cluster+", until "+day(ca.Expires()))
	c.tell(verb, caKeyFile, "its key; no member needs it")
	return ca, nil
}

// certificate keeps the one that who has if it is good, or makes one.
func (c *certs) certificate(ca *identity.CA, who identity.Identity) error {
	cert, _, err := c.readPair(certFile(who), keyFile(who))
	verb := "renewed"
	switch {
	case c.renew && cert != nil:
	case err != nil && !c.renew:
		return fmt.Errorf("%w, or let --renew make both anew", err)
	case cert != nil:
		config := identity.Config{Cert: c.path(certFile(who)), Key: c.path(keyFile(who)), CA: c.path(caFile), Self: who}
		kept, err := identity.Open(config)
		if err != nil {
			return fmt.Errorf("%w (--renew makes it anew)", err)
		}
		c.tell("kept", certFile(who), who.String()+", until "+day(kept.Expires()))
		return nil
	default:
		verb = "made"
	}
	cert, key, err := ca.Issue(who)
	if err != nil {
		return err
	}
	c.add(file{keyFile(who), key, 0o600}, file{certFile(who), cert, 0o644})
	c.tell(verb, certFile(who), who.String()+", for a year, with "+keyFile(who))
	return nil
}

func (c *certs) gossipKey() error {
	_, err := os.Lstat(c.path(gossipFile))
	switch {
	case err == nil:
		c.tell("kept", gossipFile, "key of gossip, the same for all members")
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, by its documentation
	c.add(file{gossipFile, []byte(base64.StdEncoding.EncodeToString(key) + "\n"), 0o600})
	c.tell("made", gossipFile, "key of gossip, the same for all members")
	return nil
}

// readPair returns two files that go together, nil if neither is there.
func (c *certs) readPair(certName, keyName string) (cert, key []byte, err error) {
	cert, certErr := os.ReadFile(c.path(certName))
	key, keyErr := os.ReadFile(c.path(keyName))
	noCert, noKey := errors.Is(certErr, fs.ErrNotExist), errors.Is(keyErr, fs.ErrNotExist)
	switch {
	case noCert && noKey:
		return nil, nil, nil
	case noCert || noKey:
		there, missing := keyName, certName
		if noKey {
			there, missing = certName, keyName
		}
		return nil, nil, fmt.Errorf("%s is there without %s: bring that back", c.path(there), missing)
	}
	return cert, key, errors.Join(certErr, keyErr)
}

// write puts the files into the folder, each whole or not at all.
func (c *certs) write() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	for _, f := range c.files {
		if err := f.write(c.dir); err != nil {
			return fmt.Errorf("writing %s: %w", c.path(f.name), err)
		}
	}
	return nil
}

func (f file) write(dir string) error {
	temp, err := os.CreateTemp(dir, f.name+".*")
	if err != nil {
		return err
	}
	_, err = temp.Write(f.data)
	if err = errors.Join(err, temp.Chmod(f.mode), temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), filepath.Join(dir, f.name))
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

func (c *certs) path(name string) string      { return filepath.Join(c.dir, name) }
func (c *certs) add(files ...file)            { c.files = append(c.files, files...) }
func (c *certs) tell(verb, name, what string) { c.report = append(c.report, line{verb, name, what}) }

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// print says what was done, and how to use it.
func (c *certs) print(out io.Writer, whose []identity.Identity) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, l := range c.report {
		fmt.Fprintf(w, "%s\t%s\t%s\n", l.verb, c.path(l.name), l.what)
	}
	_ = w.Flush() // as other prints, which nobody checks
	if len(whose) == 0 {
		fmt.Fprintf(out, "\nNo certificate was asked for: name members by --node and --gateway, people by --operator.\n")
		return
	}
	fmt.Fprint(out, "\nGive each its own certificate by these flags:\n")
	for _, who := range whose {
		fmt.Fprintf(out, "  ringmod %s\n", c.flags(who))
	}
}

// flags returns a command with the flags that name the files.
func (c *certs) flags(who identity.Identity) string {
	command := []string{"status"}
	if who.Role != identity.Operator {
		command = []string{string(who.Role), "--node-id", who.ID}
	}
	if c.cluster != defaultCluster {
		command = append(command, "--cluster", c.cluster)
	}
	command = append(command, "--peer-ca", c.path(caFile), "--peer-cert", c.path(certFile(who)), "--peer-key", c.path(keyFile(who)))
	if who.Role != identity.Operator {
		command = append(command, "--gossip-key-file", c.path(gossipFile))
	}
	return strings.Join(command, " ")
}
