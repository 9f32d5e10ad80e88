package config

import (
	"errors"
	"fmt"
	"slices"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// decode reads a configuration file: one YAML mapping of option names. It returns
// the texts of the values by option name, nil when the file as a whole is not of
// that form, and everything that is wrong with its form; whether a text is a good value is for Option.assign to say.
func decode(name string, data []byte, options []Option) (map[string][]value, Problems) {
	d := &decoder{file: name, values: make(map[string][]value)}
	tree, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err)
		return nil, d.problems
	}
	var body ast.Node
	for _, doc := range tree.Docs {
		switch {
		case doc == nil || doc.Body == nil:
		case body != nil:
			d.report(doc.Body, "", "keep one document", "there is more than one document in the file")
			return nil, d.problems
		default:
			body = doc.Body
		}
	}
	switch root := body.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
	case ast.MapNode:
		if body.Type() == ast.MappingType || body.Type() == ast.MappingValueType {
			d.mapping(root, options)
			break
		}
		return d.notMapping(body)
	default:
		return d.notMapping(body)
	}
	return d.values, d.problems
}

// decoder gathers what decode returns.
type decoder struct {
	file     string
	values   map[string][]value
	problems Problems
}

func (d *decoder) report(at ast.Node, key, hint, format string, args ...any) {
	d.problems = append(d.problems, d.at(at, key).problem(fmt.Sprintf(format, args...), hint))
}

func (d *decoder) at(node ast.Node, key string) origin {
	return origin{rank: fromFile, file: d.file, line: line(node.GetToken()), key: key}
}

func (d *decoder) notMapping(node ast.Node) (map[string][]value, Problems) {
	d.report(node, "", "write NAME: VALUE, one option a line", "is not a list of options")
	return nil, d.problems
}

// syntax reports what the parser says, in one line and without the excerpt of the
// file that it adds, which could show a secret.
func (d *decoder) syntax(err error) {
	p := Problem{File: d.file, What: "is not YAML", Hint: "check the indentation and the quotes in that line"}
	var e yaml.Error
	if errors.As(err, &e) {
		p.Line = line(e.GetToken())
		if p.Line == 0 {
			p.Line = 1
		}
	}
	d.problems = append(d.problems, p)
}

func line(t *token.Token) int {
	if t == nil || t.Position == nil {
		return 0
	}
	return t.Position.Line
}

// mapping reads the keys of the file.
func (d *decoder) mapping(root ast.MapNode, options []Option) {
	var names []string
	for _, o := range options {
		if !o.FlagOnly {
			names = append(names, o.Name)
		}
	}
	first := make(map[string]int) // the line of a key
	for it := root.MapRange(); it.Next(); {
		keyNode, node := it.Key(), it.Value()
		key := keyNode.GetToken().Value
		i := slices.IndexFunc(options, func(o Option) bool { return o.Name == key })
		switch {
		case keyNode.Type() != ast.StringType || i < 0:
			hint := "see --help for the options"
			if near := Nearest(key, names); near != "" {
				hint = fmt.Sprintf("did you mean %s?", near)
			}
			d.report(keyNode, quoteless(key), hint, "there is no such option")
		case options[i].FlagOnly:
			d.report(keyNode, key, "give it as a flag or as "+options[i].Env(), "cannot stand in the file")
		case first[key] != 0:
			d.report(keyNode, key, "keep one of them", "is given again, first in line %d", first[key])
		default:
			first[key] = max(line(keyNode.GetToken()), 1)
			d.option(options[i], keyNode, node)
		}
	}
}

// option reads the value of one key.
func (d *decoder) option(o Option, key ast.Node, node ast.Node) {
	if !o.Repeatable() {
		if text, ok := d.scalar(o, key, node); ok {
			d.add(o, key, text)
		}
		return
	}
	list, ok := node.(*ast.SequenceNode)
	switch {
	case ok:
		for _, item := range list.Values {
			d.item(o, item)
		}
	case o.Kind() == KindHeaders, o.Kind() == KindTexts:
		d.item(o, node)
	default:
		d.mistyped(o, key, node)
	}
}

// item reads one element of a list. One of headers may be a mapping: that is what
// YAML makes of NAME: VALUE without quotes.
func (d *decoder) item(o Option, node ast.Node) {
	if pairs, ok := node.(ast.MapNode); ok && o.Kind() == KindHeaders && node.Type() != ast.AliasType && node.Type() != ast.AnchorType {
		for it := pairs.MapRange(); it.Next(); {
			switch v := it.Value().(type) {
			case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
				d.add(o, it.Key(), it.Key().GetToken().Value+": "+v.GetToken().Value)
			default:
				d.mistyped(o, it.Key(), v)
			}
		}
		return
	}
	if text, ok := d.scalar(o, node, node); ok {
		d.add(o, node, text)
	}
}

func (d *decoder) add(o Option, at ast.Node, text string) {
	d.values[o.Name] = append(d.values[o.Name], value{text, d.at(at, o.Name)})
}

// scalar returns the text of a value whose YAML type fits the option. at is where
// to say that it does not.
func (d *decoder) scalar(o Option, at, node ast.Node) (text string, ok bool) {
	kind := o.Kind()
	switch n := node.(type) {
	case *ast.StringNode:
		if ok = kind != KindBool && kind != KindNumber; ok {
			return n.Value, true
		}
	case *ast.BoolNode:
		if ok = kind == KindBool; ok {
			return fmt.Sprint(n.Value), true
		}
	case *ast.FloatNode: // such as a version
		if ok = len(o.choices) > 0; ok {
			return n.GetToken().Value, true
		}
	case *ast.IntegerNode:
		if ok = kind == KindNumber || kind == KindSize; ok {
			return n.GetToken().Value, true
		}
	}
	d.mistyped(o, at, node)
	return "", false
}

func (d *decoder) mistyped(o Option, at, node ast.Node) {
	hint := "give " + o.example()
	var what string
	switch node.(type) {
	case nil, *ast.NullNode:
		what, hint = "has no value", hint+" or remove the line"
	case *ast.BoolNode:
		what = "is a yes or no"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		what = "is a number"
		if o.Kind() == KindText || o.Kind() == KindTexts {
			hint = "put it in quotes"
		}
	case *ast.StringNode:
		what = "is a text"
		if o.Kind() == KindForwards {
			what, hint = "is not a list", "put a dash before it, - "+quoteless(node.GetToken().Value)
		}
	case *ast.SequenceNode:
		what = "is a list"
		if o.Kind() == KindForwards {
			hint = "put it in quotes, because of the brackets"
		}
	case *ast.AliasNode:
		what = "is a YAML alias, which is not supported"
		if o.Kind() == KindForwards {
			what, hint = "begins with an asterisk", "put it in quotes"
		}
	case *ast.AnchorNode, *ast.TagNode, *ast.LiteralNode:
		what = "is written with a YAML feature that is not supported"
	default:
		what = "is a mapping"
	}
	d.report(at, o.Name, hint, "%s", what)
}
