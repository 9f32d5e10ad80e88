package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// section is a key of the file that is not an option, since its value has a form of
// its own.
type section struct {
	name string
	read func(d *decoder, path string, at, node ast.Node)
}

// decode reads a configuration file: one YAML mapping of option names, and of the
// names of sections, which are read at once. It returns the texts of the values by
// option name, nil when the file as a whole is not of that form, and everything that
// is wrong with its form; whether a text is a good value is for Option.assign to say.
func decode(name string, data []byte, options []Option, sections ...section) (map[string][]value, Problems) {
	d := newDecoder(name)
	body := d.body(data)
	if body == nil {
		if len(d.problems) > 0 {
			return nil, d.problems
		}
		return map[string][]value{}, nil
	}
	root, ok := mappingOf(body)
	if !ok {
		d.report(body, "", "write NAME: VALUE, one option a line", "is not a list of options")
		return nil, d.problems
	}
	return d.options(root, options, sections), d.problems
}

// decoder reads one file and gathers what is wrong with it.
type decoder struct {
	file     string
	dir      string // at which relative paths begin
	problems Problems
}

func newDecoder(file string) *decoder { return &decoder{file: file, dir: baseOf(file)} }

// baseOf returns the directory at which relative paths in a file begin: that of the file,
// or the working directory, "", for a pipe.
func baseOf(file string) string {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return ""
	}
	return filepath.Dir(file)
}

// body is the content of the one YAML document in data, nil when there is none.
func (d *decoder) body(data []byte) ast.Node {
	tree, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err, data)
		return nil
	}
	var body ast.Node
	for _, doc := range tree.Docs {
		switch {
		case doc == nil || doc.Body == nil:
		case body != nil:
			d.report(doc.Body, "", "keep one document", "there is more than one document in the file")
			return nil
		default:
			body = doc.Body
		}
	}
	switch body.(type) {
	case *ast.NullNode, *ast.CommentGroupNode:
		return nil
	}
	return body
}

// mappingOf is node when that is a mapping, and written as one.
func mappingOf(node ast.Node) (ast.MapNode, bool) {
	root, ok := node.(ast.MapNode)
	return root, ok && (node.Type() == ast.MappingType || node.Type() == ast.MappingValueType)
}

func (d *decoder) report(at ast.Node, key, hint, format string, args ...any) {
	d.problems = append(d.problems, d.at(at, key).problem(fmt.Sprintf(format, args...), hint))
}

func (d *decoder) at(node ast.Node, key string) origin {
	return origin{rank: fromFile, file: d.file, line: line(node.GetToken()), key: key, dir: d.dir}
}

// syntax reports an error of the parser in one line and without the excerpt of the file
// that it adds, which could show a secret.
func (d *decoder) syntax(err error, data []byte) {
	p := Problem{File: d.file, What: "is not YAML", Hint: "check the indentation and the quotes in that line"}
	var e yaml.Error
	if errors.As(err, &e) {
		p.Line = line(e.GetToken())
		if p.Line == 0 {
			p.Line = 1
		}
		if tabIndented(data, p.Line) {
			p.What, p.Hint = "is indented with a tab, which YAML does not allow", "indent the line with spaces"
		}
	}
	d.problems = append(d.problems, p)
}

// tabIndented reports whether there is a tab before the text of a line, counted from 1.
func tabIndented(data []byte, line int) bool {
	for text := range bytes.Lines(data) {
		if line--; line == 0 {
			return bytes.Contains(text[:len(text)-len(bytes.TrimLeft(text, " \t"))], []byte("\t"))
		}
	}
	return false
}

func line(t *token.Token) int {
	if t == nil || t.Position == nil {
		return 0
	}
	return t.Position.Line
}

// options reads the keys of the file.
func (d *decoder) options(root ast.MapNode, options []Option, sections []section) map[string][]value {
	values := make(map[string][]value)
	var names []string
	for _, o := range options {
		names = append(names, o.Name)
	}
	for _, s := range sections {
		names = append(names, s.name)
	}
	d.pairs("", root, names, func(name string, key, node ast.Node) {
		for _, o := range options {
			switch {
			case o.Name != name:
			case o.FlagOnly:
				d.report(key, name, "give it as a flag or as "+o.Env(), "cannot stand in the file")
			default:
				values[name] = d.option(o, key, node)
			}
		}
		for _, s := range sections {
			if s.name == name {
				s.read(d, name, key, node)
			}
		}
	})
	return values
}

// pairs calls visit for each key of a mapping, and reports keys that are none of
// names (nil: any is good) and those that are given again. path is that of the
// mapping, "" for the file itself.
func (d *decoder) pairs(path string, root ast.MapNode, names []string, visit func(name string, key, node ast.Node)) {
	first := make(map[string]int) // the line of a key
	for it := root.MapRange(); it.Next(); {
		key, node := it.Key(), it.Value()
		name := key.GetToken().Value
		place := below(path, name)
		text := key.Type() == ast.StringType
		switch {
		case names == nil && !text:
			d.report(key, place, "put it in quotes", "is not a text")
		case !text || names != nil && !slices.Contains(names, name):
			hint, what := "see --help for the options", "there is no such option"
			if path != "" {
				hint, what = "there are "+strings.Join(names, ", "), "there is no such key"
			}
			if near := Nearest(name, names); near != "" {
				hint = fmt.Sprintf("did you mean %s?", near)
			}
			d.report(key, place, hint, "%s", what)
		case first[name] != 0:
			d.report(key, place, "keep one of them", "is given again, first in line %d", first[name])
		default:
			first[name] = max(line(key.GetToken()), 1)
			visit(name, key, node)
		}
	}
}

// below is the path of a key in a mapping, in one line.
func below(path, name string) string {
	name = quoteless(name)
	if path == "" {
		return name
	}
	return path + "." + name
}

// object is node as a mapping; when it is none, that is reported at the node at,
// with an example of what should be there.
func (d *decoder) object(path string, at, node ast.Node, example string) (ast.MapNode, bool) {
	root, ok := mappingOf(node)
	if !ok {
		d.mistype(path, at, node, "give "+example)
	}
	return root, ok
}

// list calls visit for each element of a list.
func (d *decoder) list(path string, at, node ast.Node, example string, visit func(at, node ast.Node)) {
	list, ok := node.(*ast.SequenceNode)
	if !ok {
		d.mistype(path, at, node, "give "+example+", each with a dash before it")
		return
	}
	for _, item := range list.Values {
		visit(item, item)
	}
}

// fields reads a mapping of the names of options into what they point to. The target
// of an option may be a function here, which is given the key's path and its value.
func (d *decoder) fields(path string, root ast.MapNode, options ...Option) {
	var names []string
	for _, o := range options {
		names = append(names, o.Name)
	}
	d.pairs(path, root, names, func(name string, key, node ast.Node) {
		o := options[slices.Index(names, name)]
		o.Name = below(path, name)
		d.field(o, key, node)
	})
}

// field reads the value of one key into what o points to.
func (d *decoder) field(o Option, key, node ast.Node) {
	if read, ok := o.target.(func(path string, at, node ast.Node)); ok {
		read(o.Name, key, node)
		return
	}
	for _, v := range d.option(o, key, node) {
		if err := o.assign(o.textOf(v)); err != nil {
			d.problems = append(d.problems, v.origin.problem(explain(err)))
			continue
		}
		switch p := o.target.(type) { // whoever gives it a meaning has to say where it stands
		case *Text:
			p.origin = v.origin
		case *[]Text:
			(*p)[len(*p)-1].origin = v.origin
		}
	}
}

// option reads the value of one key, or the elements of it.
func (d *decoder) option(o Option, key ast.Node, node ast.Node) []value {
	if !o.Repeatable() {
		return d.scalar(o, key, node)
	}
	list, ok := node.(*ast.SequenceNode)
	switch {
	case ok:
		var values []value
		for _, item := range list.Values {
			values = append(values, d.item(o, item)...)
		}
		return values
	case o.Kind() == KindHeaders, o.Kind() == KindTexts:
		return d.item(o, node)
	default:
		d.mistyped(o, key, node)
		return nil
	}
}

// item reads one element of a list. One of headers may be a mapping: that is what
// YAML makes of NAME: VALUE without quotes.
func (d *decoder) item(o Option, node ast.Node) (values []value) {
	pairs, ok := mappingOf(node)
	if !ok || o.Kind() != KindHeaders {
		return d.scalar(o, node, node)
	}
	for it := pairs.MapRange(); it.Next(); {
		switch v := it.Value().(type) {
		case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
			values = append(values, value{it.Key().GetToken().Value + ": " + v.GetToken().Value, d.at(it.Key(), o.Name)})
		default:
			d.mistyped(o, it.Key(), v)
		}
	}
	return values
}

// scalar returns a value whose YAML type fits the option, or none. at is where it
// stands.
func (d *decoder) scalar(o Option, at, node ast.Node) []value {
	kind := o.Kind()
	one := func(text string) []value { return []value{{text, d.at(at, o.Name)}} }
	switch n := node.(type) {
	case *ast.StringNode:
		if kind != KindBool && kind != KindNumber {
			return one(n.Value)
		}
	case *ast.BoolNode:
		if kind == KindBool {
			return one(fmt.Sprint(n.Value))
		}
	case *ast.FloatNode: // such as a version
		if len(o.choices) > 0 {
			return one(n.GetToken().Value)
		}
	case *ast.IntegerNode:
		if kind == KindNumber || kind == KindSize {
			return one(n.GetToken().Value)
		}
	}
	d.mistyped(o, at, node)
	return nil
}

// mistyped reports a value of an option that YAML takes for something else.
func (d *decoder) mistyped(o Option, at, node ast.Node) {
	forwards, texts := o.Kind() == KindForwards, o.Kind() == KindText || o.Kind() == KindTexts
	switch node.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		if texts {
			d.mistype(o.Name, at, node, "put it in quotes")
			return
		}
	case *ast.StringNode:
		if forwards {
			d.report(at, o.Name, "put a dash before it, - "+quoteless(node.GetToken().Value), "is not a list")
			return
		}
	case *ast.SequenceNode:
		if forwards {
			d.mistype(o.Name, at, node, "put it in quotes, because of the brackets")
			return
		}
	case *ast.AliasNode:
		if forwards {
			d.report(at, o.Name, "put it in quotes", "begins with an asterisk")
			return
		}
	}
	if _, ok := mappingOf(node); ok && o.Kind() == KindTexts { // what the parser makes of [a:b]
		d.mistype(o.Name, at, node, "give "+o.example()+", in quotes where it has a colon in it")
		return
	}
	d.mistype(o.Name, at, node, "give "+o.example())
}

// mistype reports a value of the wrong YAML type.
func (d *decoder) mistype(path string, at, node ast.Node, hint string) {
	var what string
	switch node.(type) {
	case nil, *ast.NullNode:
		what, hint = "has no value", hint+" or remove the line"
	case *ast.BoolNode:
		what = "is a yes or no"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		what = "is a number"
	case *ast.StringNode:
		what = "is a text"
	case *ast.SequenceNode:
		what = "is a list"
	case *ast.AliasNode:
		what = "is a YAML alias, which is not supported"
	case *ast.AnchorNode, *ast.TagNode, *ast.LiteralNode:
		what = "is written with a YAML feature that is not supported"
	default:
		what = "is a mapping"
	}
	d.report(at, path, hint, "%s", what)
}
