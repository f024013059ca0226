package ring_test

import (
	"fmt"

	"github.com/ringmod/ringmod/ring"
)

func Example() {
	spec := ring.DefaultSpec()
	var members ring.Members
	for _, id := range []string{"ann", "bob", "eve"} {
		_, err := members.Put(ring.Member{
			ID:     id,
			Epoch:  members.NextEpoch(),
			State:  ring.Active,
			Role:   ring.Node,
			Region: "default",
			Weight: 1,
			Addr:   id + ".example.com:8082",
			Spec:   spec.Hash(),
		})
		if err != nil {
			fmt.Println(err)
		}
	}
	view, err := ring.NewView(spec, &members)
	if err != nil {
		fmt.Println(err)
		return
	}
	p := ring.OfVersion("golang.org/x/mod", "v0.42.0")
	fmt.Println("partition", p)
	for _, i := range view.Current().Replicas("default", p) {
		fmt.Println(view.Member(i).Addr)
	}
	// Output:
	// partition 3723
	// eve.example.com:8082
	// ann.example.com:8082
}
