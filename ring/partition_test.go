package ring_test

import (
	"testing"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/ring"
)

func TestOf(t *testing.T) { //nolint:paralleltest // counts allocations
	const mod, version = "github.com/!azure/azure-sdk-for-go", "v68.0.0+incompatible"
	for name, want := range map[string]ring.Partition{
		mod + "/@v/" + version + ".info":                       ring.OfVersion(mod, version),
		mod + "/@v/" + version + ".mod":                        ring.OfVersion(mod, version),
		mod + "/@v/" + version + ".zip":                        ring.OfVersion(mod, version),
		mod + "/@v/list":                                       ring.OfModule(mod),
		mod + "/@latest":                                       ring.OfModule(mod),
		mod + "/@v/v68.info":                                   ring.OfModule(mod),
		mod + "/@v/!main.info":                                 ring.OfModule(mod),
		"sumdb/sum.golang.org/latest":                          ring.OfSumdb("sum.golang.org", "latest"),
		"sumdb/sum.golang.org/lookup/golang.org/x/mod@v0.42.0": ring.OfSumdb("sum.golang.org", "lookup/golang.org/x/mod@v0.42.0"),
		"sumdb/sum.golang.org/tile/8/0/000":                    ring.OfSumdb("sum.golang.org", "tile/8/0/000"),
	} {
		parsed, err := target.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := ring.Of(parsed); got != want {
			t.Errorf("%s: got partition %d, want %d", name, got, want)
		}
		if n := testing.AllocsPerRun(10, func() { ring.Of(parsed) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
	if got, want := ring.Of(target.Target{}), ring.OfModule(""); got != want {
		t.Errorf("no target: got partition %d, want %d", got, want)
	}
}
