package admin

import (
	"errors"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

var errNoSubject = errors.New("the request names neither a module nor a target")

// subject returns the targets that a request is about. Its errors are made for
// whoever typed the name.
func subject(req *ringmodv1.ExplainRequest) ([]target.Target, error) {
	var targets []target.Target
	var err error
	switch s := req.GetSubject().(type) {
	case *ringmodv1.ExplainRequest_Module:
		targets, err = Targets(module.Version{Path: s.Module.GetPath(), Version: s.Module.GetVersion()})
	case *ringmodv1.ExplainRequest_Target:
		targets = make([]target.Target, 1)
		targets[0], err = target.Parse(s.Target)
	default:
		err = errNoSubject
	}
	if err != nil {
		return nil, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	return targets, nil
}

// Targets returns the objects that m stands for: list and latest of a module
// without a version, the files of a canonical version, latest for that word, and
// the query for everything else.
func Targets(m module.Version) ([]target.Target, error) {
	switch m.Version {
	case "":
		return each(func(k target.Kind) (target.Target, error) { return target.ForModule(m.Path, k) }, target.List, target.Latest)
	case "latest":
		return each(func(k target.Kind) (target.Target, error) { return target.ForModule(m.Path, k) }, target.Latest)
	}
	info, err := target.ForVersion(m, target.Info)
	if err != nil || info.Kind == target.Query {
		return []target.Target{info}, err
	}
	return each(info.Sibling, target.Info, target.Mod, target.Zip)
}

func each(of func(target.Kind) (target.Target, error), kinds ...target.Kind) ([]target.Target, error) {
	targets := make([]target.Target, len(kinds))
	for i, kind := range kinds {
		var err error
		if targets[i], err = of(kind); err != nil {
			return nil, err
		}
	}
	return targets, nil
}
