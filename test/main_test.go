// Package test holds the tests of whole processes and of the whole system. The
// tests named TestReal… need the upstream of 'go env GOPROXY'; all others stay
// on loopback. Nothing imports this package.
//
// Most of them wait for other processes, so that in -short runs more run beside each
// other than there are processors. What measures runs alone, and so does what a long run
// reports of times.
package test

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/ringmod/ringmod/test/harness"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if given := false; testing.Short() {
		flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
		if !given {
			_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
		}
	}
	status := m.Run()
	harness.RemoveBinary()
	os.Exit(status)
}
