// Package test holds the tests of whole processes and of the whole system. The
// tests named TestReal… need the upstream of 'go env GOPROXY'; all others stay
// on loopback. Nothing imports this package.
package test

import (
	"os"
	"testing"

	"github.com/ringmod/ringmod/test/harness"
)

func TestMain(m *testing.M) {
	status := m.Run()
	harness.RemoveBinary()
	os.Exit(status)
}
