package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	certLife = 365 * 24 * time.Hour
	backdate = 24 * time.Hour // clocks are wrong
)

// CA makes certificates, for clusters that have no other source of them.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes a CA for a cluster: ECDSA on P-256, valid for 10 years.
func NewCA(cluster string) (*CA, error) {
	if err := checkCluster(cluster); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &CA{key: key, cert: &x509.Certificate{
		Subject:               pkix.Name{CommonName: "ringmod CA", Organization: []string{cluster}},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: cluster}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}}
	der, err := x509.CreateCertificate(rand.Reader, ca.cert, ca.cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	ca.cert, err = x509.ParseCertificate(der)
	return ca, err
}

// ReadCA takes a CA from its files, which need not have been made here. The
// first certificate counts.
func ReadCA(cert, key []byte) (*CA, error) {
	pair, err := parsePair(cert, key)
	if err != nil {
		return nil, err
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	switch {
	case !ok:
		return nil, errors.New("the key cannot sign")
	case !pair.Leaf.IsCA:
		return nil, fmt.Errorf("the certificate of %q is none of a CA", pair.Leaf.Subject.CommonName)
	case time.Now().After(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("the CA expired at %s", stamp(pair.Leaf.NotAfter))
	}
	return &CA{cert: pair.Leaf, key: signer}, nil
}

// Cluster returns what cluster the CA was made for, "" if that is not known.
func (ca *CA) Cluster() string {
	if len(ca.cert.URIs) != 1 || ca.cert.URIs[0].Scheme != "spiffe" {
		return ""
	}
	return ca.cert.URIs[0].Host
}

// Expires returns when the CA, and with it all that it made, ends.
func (ca *CA) Expires() time.Time { return ca.cert.NotAfter }

// PEM returns the CA as ReadCA takes it.
func (ca *CA) PEM() (cert, key []byte, err error) { return encodePair(ca.cert.Raw, ca.key) }

// Issue makes a certificate with a new key, valid for a year, for both ends of a
// connection.
func (ca *CA) Issue(who Identity) (cert, key []byte, err error) {
	if err := who.Check(); err != nil {
		return nil, nil, err
	}
	now := time.Now()
	uri, err := url.Parse(who.URI())
	if err != nil {
		return nil, nil, err
	}
	return ca.sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: who.String(), Organization: []string{who.Cluster}},
		URIs:                  []*url.URL{uri},
		NotBefore:             now.Add(-backdate),
		NotAfter:              earlier(now.Add(certLife), ca.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	})
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// sign makes what the template says.
func (ca *CA) sign(template *x509.Certificate) (cert, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, signer.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	return encodePair(der, signer)
}

func encodePair(der []byte, signer crypto.Signer) (cert, key []byte, err error) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, err
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
