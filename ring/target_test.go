package ring_test

import (
	"testing"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/ring"
)

func TestOfTarget(t *testing.T) {
	t.Parallel()
	const azure = "github.com/!azure/azure-sdk-for-go"
	version := ring.OfVersion(azure, "v68.0.0+incompatible")
	module := ring.OfModule(azure)
	tests := map[string]ring.Partition{
		azure + "/@v/v68.0.0+incompatible.info": version,
		azure + "/@v/v68.0.0+incompatible.mod":  version,
		azure + "/@v/v68.0.0+incompatible.zip":  version,
		azure + "/@v/list":                      module,
		azure + "/@latest":                      module,
		azure + "/@v/main.info":                 module,

		"sumdb/sum.golang.org/supported":                        ring.OfSumdb("sum.golang.org", "supported"),
		"sumdb/sum.golang.org/latest":                           ring.OfSumdb("sum.golang.org", "latest"),
		"sumdb/sum.golang.org/tile/8/0/x001/234":                ring.OfSumdb("sum.golang.org", "tile/8/0/x001/234"),
		"sumdb/sum.golang.org/lookup/golang.org/x/mod@v0.42.0":  ring.OfSumdb("sum.golang.org", "lookup/golang.org/x/mod@v0.42.0"),
		"sumdb/sums.example.com/a/lookup/golang.org/x/m@v1.0.0": ring.OfSumdb("sums.example.com/a", "lookup/golang.org/x/m@v1.0.0"),
	}
	for name, want := range tests {
		parsed, err := target.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := ring.OfTarget(parsed); got != want {
			t.Errorf("OfTarget(%s) = %d, want %d", name, got, want)
		}
	}
	if got, want := ring.OfTarget(target.Target{}), ring.OfModule(""); got != want {
		t.Errorf("OfTarget of nothing = %d, want %d", got, want)
	}
}
