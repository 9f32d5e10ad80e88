package config

import "strings"

// ParseHeaderFile reads the content of a file of request headers, for the option
// header-file: "Name: value", one a line; blank lines and lines that start with # are
// passed over. name is that of the file, for the error, which is of type [Problems]
// and shows no value.
func ParseHeaderFile(name string, content []byte) (map[string][]string, error) {
	var problems Problems
	header := make(map[string][]string)
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		field, value, err := parseHeader(line)
		if err != nil {
			what, hint := explain(err)
			problems = append(problems, Problem{File: name, Line: number, What: what, Hint: hint})
			continue
		}
		header[field] = append(header[field], value)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return header, nil
}
