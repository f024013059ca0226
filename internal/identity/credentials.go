package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	reloadEvery = 5 * time.Second
	warnBefore  = 30 * 24 * time.Hour // before the own certificate expires, or a tenth of its life
)

// Config names the files of a process.
type Config struct {
	Cert string // PEM: the own certificate, then those between it and the CA
	Key  string // PEM: its private key
	CA   string // PEM: the certificates that all others must lead to

	// Self is what the own certificate must say. Empty fields may say anything.
	Self   Identity
	Logger *slog.Logger // nil = silent
}

// Credentials are the certificates of a process and what it makes of them. All
// methods may be called at any time from any goroutine, also on nil.
type Credentials struct {
	cfg  Config
	log  *slog.Logger
	now  atomic.Pointer[material]
	noes limiter // for handshakes that fail

	mu      sync.Mutex // guards what follows, and is held to replace now
	failure string     // of the last reload
	told    bool       // it was logged
	warned  string     // of the end of the certificate
}

// material is what the files held when they were read last and were good.
type material struct {
	files [3][]byte
	cert  tls.Certificate // with Leaf
	roots *x509.CertPool
	self  Identity
}

// Open reads the files. Its errors are made for whoever named them.
func Open(cfg Config) (*Credentials, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Credentials{cfg: cfg, log: cfg.Logger}
	return c, c.Reload()
}

// Self returns whom the own certificate names.
func (c *Credentials) Self() Identity {
	if c == nil {
		return Identity{}
	}
	return c.now.Load().self
}

// Expires returns when the own certificate ends.
func (c *Credentials) Expires() time.Time {
	if c == nil {
		return time.Time{}
	}
	return c.now.Load().cert.Leaf.NotAfter
}

// Run reads the files again every 5 s until ctx is done, and says what is new.
func (c *Credentials) Run(ctx context.Context) error {
	if c == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		c.warn(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c.refresh(ctx)
	}
}

// refresh reloads. A failure counts when it is seen twice: who replaces files does
// so one after the other.
func (c *Credentials) refresh(ctx context.Context) {
	before := c.now.Load()
	err := c.Reload()
	after := c.now.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.failure, c.told = "", false
	case err.Error() != c.failure:
		c.failure, c.told = err.Error(), false
	case !c.told:
		c.told = true
		c.log.ErrorContext(ctx, "cannot reload the certificates, keeping those before", "err", err)
	}
	if before != after {
		c.log.InfoContext(ctx, "certificates were reloaded", "file", c.cfg.Cert, "identity", after.self.URI(),
			"expires", after.cert.Leaf.NotAfter)
	}
}

// warn announces the end of the own certificate, once ahead of time and once when it
// has come.
func (c *Credentials) warn(ctx context.Context) {
	leaf := c.now.Load().cert.Leaf
	early := min(warnBefore, leaf.NotAfter.Sub(leaf.NotBefore)/10)
	left := time.Until(leaf.NotAfter)
	if left > early {
		return
	}
	level, msg := slog.LevelWarn, "certificate expires soon, replace the file and it will be read"
	if left <= 0 {
		level, msg = slog.LevelError, "certificate has expired, replace the file and it will be read"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if said := msg + stamp(leaf.NotAfter); said != c.warned {
		c.warned = said
		c.log.Log(ctx, level, msg, "file", c.cfg.Cert, "expires", leaf.NotAfter) //nolint:sloglint // two constants
	}
}

// Reload reads the files at once. On an error those before stay in use.
func (c *Credentials) Reload() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var files [3][]byte
	for i, name := range []string{c.cfg.Cert, c.cfg.Key, c.cfg.CA} {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("certificates between members: %w", err)
		}
		files[i] = b
	}
	if old := c.now.Load(); old != nil && equal(old.files, files) {
		return nil
	}
	m, err := c.parse(files)
	if err != nil {
		return err
	}
	c.now.Store(m)
	return nil
}

func equal(a, b [3][]byte) bool {
	return bytes.Equal(a[0], b[0]) && bytes.Equal(a[1], b[1]) && bytes.Equal(a[2], b[2])
}

// parse holds the files to what others will hold them to.
func (c *Credentials) parse(files [3][]byte) (*material, error) {
	m := &material{files: files}
	var err error
	if m.roots, err = parseCA(files[2]); err != nil {
		return nil, fmt.Errorf("CA file %s: %w", c.cfg.CA, err)
	}
	if m.cert, err = parsePair(files[0], files[1]); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", c.cfg.Cert, c.cfg.Key, err)
	}
	chain := []*x509.Certificate{m.cert.Leaf}
	for _, der := range m.cert.Certificate[1:] {
		between, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %s: %w", c.cfg.Cert, err)
		}
		chain = append(chain, between)
	}
	if m.self, err = m.identify(chain, x509.ExtKeyUsageClientAuth); err == nil && m.self.Role != Operator {
		_, err = m.identify(chain, x509.ExtKeyUsageServerAuth)
	}
	if err == nil {
		err = m.self.matches(c.cfg.Self)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate %s with CA %s: %w", c.cfg.Cert, c.cfg.CA, err)
	}
	return m, nil
}

func parsePair(cert, key []byte) (tls.Certificate, error) {
	if len(blocks(cert, "CERTIFICATE")) == 0 {
		return tls.Certificate{}, errors.New("the certificate file holds no certificate in PEM form")
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return pair, fmt.Errorf("they do not go together: %w", err)
	}
	return pair, nil
}

func parseCA(b []byte) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	found := blocks(b, "CERTIFICATE")
	if len(found) == 0 {
		return nil, errors.New("it holds no certificate in PEM form")
	}
	for _, der := range found {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("the certificate of %q in it is none of a CA", cert.Subject.CommonName)
		}
		roots.AddCert(cert)
	}
	return roots, nil
}

// blocks returns the contents of the PEM blocks of a kind.
func blocks(b []byte, kind string) [][]byte {
	var all [][]byte
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return all
		}
		if block.Type == kind {
			all = append(all, block.Bytes)
		}
	}
}

// identify returns whom a chain of certificates names, if it holds.
func (m *material) identify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	leaf := chain[0]
	who, err := Of(leaf)
	if err != nil {
		return Identity{}, err
	}
	if leaf.IsCA {
		return Identity{}, fmt.Errorf("the certificate of %s is one of a CA", who)
	}
	options := x509.VerifyOptions{Roots: m.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, between := range chain[1:] {
		options.Intermediates.AddCert(between)
	}
	if _, err := leaf.Verify(options); err != nil {
		return Identity{}, explain(who, leaf, err)
	}
	return who, nil
}

// explain says what a certificate's owner can do about it.
func explain(who Identity, leaf *x509.Certificate, err error) error {
	now := time.Now()
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate of %s expired at %s and it is %s: make a new one, or set the clock",
			who, stamp(leaf.NotAfter), stamp(now))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate of %s is not valid before %s and it is %s: set the clock",
			who, stamp(leaf.NotBefore), stamp(now))
	case invalid.Cert != nil && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("the certificate of %s is not for both clients and servers: make one that has both extended key usages", who)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("the certificate of %s was not made by our CA (its issuer is %q)", who, leaf.Issuer)
	}
	return fmt.Errorf("the certificate of %s: %w", who, err)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// matches tells what differs from want, whose empty fields ask for nothing.
func (i Identity) matches(want Identity) error {
	switch {
	case want.Cluster != "" && i.Cluster != want.Cluster:
		return fmt.Errorf("%s is of cluster %s, not %s", i, i.Cluster, want.Cluster)
	case want.Role != "" && i.Role != want.Role, want.ID != "" && i.ID != want.ID:
		return fmt.Errorf("it names %s, not %s", i, want.wanted())
	}
	return nil
}

// wanted is String for a name with gaps.
func (i Identity) wanted() string {
	switch {
	case i.Role == "":
		return i.ID
	case i.ID == "":
		return "a " + string(i.Role)
	}
	return i.String()
}
