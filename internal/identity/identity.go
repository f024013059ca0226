// Package identity lets members know each other: mutual TLS in which a certificate
// says who its bearer is, and what each may ask of the others.
//
// # Names
//
// The name of a process is the one URI among the alternative names of its
// certificate:
//
//	spiffe://<cluster>/node/<id>
//	spiffe://<cluster>/gateway/<id>
//	spiffe://<cluster>/operator/<name>
//
// Id and name are 1 to 64 letters, digits, '.', '_' and '-', as ring ids are; so is
// the cluster, 1 to 63 of them without an empty part between dots. Host names and
// addresses in a certificate mean nothing. A process that is node and gateway at
// once is a node.
//
// # Checks
//
// Both sides want TLS 1.3 and a certificate that leads to a certificate in the CA
// file, is valid now, may be used for its side (client or server) and names a
// process of the own cluster. Who dials checks further that the other end is
// exactly the member it meant: gossip can be forged by whoever holds its
// key. An operator is never a server.
//
// # Files
//
// The files are read again every 5 s. What is new is used for connections made from then
// on; those that stand are left alone. While new files are broken, or do not
// belong together, the ones before stay in use. To replace a CA, put both into the
// CA file of all members, then replace the certificates, then take the old
// one out.
//
// # Who may ask what
//
// See the table in authorize.go. A method that is not in it is refused to all.
//
// A nil *Credentials stands for a cluster without certificates: connections are
// not encrypted, and everybody may ask everything.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/ringmod/ringmod/ring"
)

// Role is what the bearer of a certificate is.
type Role string

// The roles.
const (
	Node     Role = "node"
	Gateway  Role = "gateway"
	Operator Role = "operator" // a person with the command line
)

const (
	scheme        = "spiffe://"
	maxClusterLen = 63
)

// Identity is the name of a process or a person.
type Identity struct {
	Cluster string
	Role    Role
	ID      string // of a member; the name of an operator
}

// URI returns the name as certificates have it.
func (i Identity) URI() string { return scheme + i.Cluster + "/" + string(i.Role) + "/" + i.ID }

// String returns role and id, for people: "node n1".
func (i Identity) String() string { return string(i.Role) + " " + i.ID }

// Check returns what is wrong with a name.
func (i Identity) Check() error {
	if err := checkCluster(i.Cluster); err != nil {
		return err
	}
	switch i.Role {
	case Node, Gateway, Operator:
	default:
		return fmt.Errorf("role %q is none of node, gateway and operator", i.Role)
	}
	return ring.CheckName("id of "+string(i.Role), i.ID, 1, ring.MaxIDLen)
}

// checkCluster holds a cluster's name to what certificates can carry.
func checkCluster(name string) error {
	if err := ring.CheckName("cluster", name, 1, maxClusterLen); err != nil {
		return err
	}
	for part := range strings.SplitSeq(name, ".") {
		if part == "" {
			return fmt.Errorf("cluster %q has an empty part beside a dot", name)
		}
	}
	return nil
}

// Parse reads what URI writes, and nothing else.
func Parse(uri string) (Identity, error) {
	rest, ok := strings.CutPrefix(uri, scheme)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return Identity{}, fmt.Errorf("%.200q is not of the form spiffe://CLUSTER/ROLE/ID", uri)
	}
	i := Identity{parts[0], Role(parts[1]), parts[2]}
	if err := i.Check(); err != nil {
		return Identity{}, fmt.Errorf("%.200q: %w", uri, err)
	}
	return i, nil
}

// Of returns whom a certificate names. It checks nothing else of it.
func Of(cert *x509.Certificate) (Identity, error) {
	switch len(cert.URIs) {
	case 0:
		return Identity{}, errors.New("it names nobody: it has no URI such as spiffe://CLUSTER/node/ID among its alternative names")
	case 1:
		return Parse(cert.URIs[0].String())
	}
	return Identity{}, fmt.Errorf("it has %d URIs among its alternative names, not one", len(cert.URIs))
}
