package front

import "io/fs"

// SiteFiles are the files that Site shows.
func SiteFiles(dir string) fs.FS { return siteFiles(dir) }
