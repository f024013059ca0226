package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// envPrefix starts the name of the environment variable of every flag:
// --http-addr is RINGMOD_HTTP_ADDR.
const envPrefix = "RINGMOD_"

// complete fills the flags that were not given on the command line from the
// environment, and those that are not there either from the YAML file named by
// --config, whose keys are the flags' names.
func complete(flags *pflag.FlagSet, getenv func(string) (string, bool)) error {
	if err := fromEnvironment(flags, getenv); err != nil {
		return err
	}
	file := flags.Lookup("config").Value.String()
	if file == "" {
		return nil
	}
	if err := fromFile(flags, file); err != nil {
		return usagef("configuration file %s: %w", file, err)
	}
	return nil
}

func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func fromEnvironment(flags *pflag.FlagSet, getenv func(string) (string, bool)) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		value, ok := getenv(envName(f.Name))
		if !ok || f.Changed || f.Name == "help" {
			return
		}
		if err := set(flags, f, envWords(f, value)); err != nil {
			errs = append(errs, usagef("environment variable %s: %w", envName(f.Name), err))
		}
	})
	return errors.Join(errs...)
}

func fromFile(flags *pflag.FlagSet, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var values map[string]yaml.Node
	if err := yaml.Unmarshal(data, &values); err != nil {
		return err
	}
	for key, node := range values {
		f := flags.Lookup(key)
		if f == nil || key == "config" || key == "help" {
			return fmt.Errorf("line %d: unknown key %q; the keys are the names of the flags, without the dashes in front", node.Line, key)
		}
		if f.Changed {
			continue
		}
		words, err := scalars(node)
		if err != nil {
			return fmt.Errorf("line %d: %s: %w", node.Line, key, err)
		}
		if err := set(flags, f, words); err != nil {
			return fmt.Errorf("line %d: %s: %w", node.Line, key, err)
		}
	}
	return nil
}

// scalars returns the value or the list of values of a YAML node as text.
func scalars(node yaml.Node) ([]string, error) {
	switch node.Kind {
	case yaml.ScalarNode:
		return []string{node.Value}, nil
	case yaml.SequenceNode:
		var words []string
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, errors.New("a list holds plain values only")
			}
			words = append(words, item.Value)
		}
		return words, nil
	default:
		return nil, errors.New("want a value or a list of values")
	}
}

// set gives f its values; only repeatable flags take more than one.
func set(flags *pflag.FlagSet, f *pflag.Flag, values []string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		values = slices.DeleteFunc(values, func(v string) bool { return v == "" })
		f.Changed = true
		return list.Replace(values)
	}
	if len(values) != 1 {
		return errors.New("takes one value")
	}
	return flags.Set(f.Name, values[0])
}

// envWords splits the value of a repeatable flag at commas.
func envWords(f *pflag.Flag, value string) []string {
	if _, ok := f.Value.(pflag.SliceValue); ok {
		return strings.Split(value, ",")
	}
	return []string{value}
}
