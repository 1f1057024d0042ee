// Libraries as files: saved from the tab, dropped onto it or chosen.
import { icon, make } from '../shared/dom.mjs'

const KIND = '.zip'

// A button that saves a library to the user's own disk.
export function saver({ t, shelf, attempt }, library) {
  return make('button', {
    type: 'button', class: 'seqlora-button', 'data-key': `save ${library}`, title: t('library.saveTitle'),
    onclick: () => attempt(async () => {
      const { name, url } = await shelf.pack(library)
      make('a', { href: url, download: name }).click()
    })
  }, icon('download'), t('library.save'))
}

// A button that takes such a file, and the same for files that are dropped onto `place`.
export function opener({ t, shelf, attempt, tell }, place) {
  const take = (files) => attempt(async () => {
    for (const file of files) {
      if (!file.name.toLowerCase().endsWith(KIND)) throw new Error(t('library.notAFile', { file: file.name }))
      tell(t('library.opening', { file: file.name }))
      const { name } = await shelf.unpack(file)
      tell(t('library.opened', { library: name }))
    }
  })
  const chosen = make('input', { type: 'file', accept: KIND, hidden: true, onchange: () => take([...chosen.files]).then(() => { chosen.value = '' }) })
  const hasFiles = (event) => event.dataTransfer?.types.includes('Files')
  place.addEventListener('dragover', (event) => {
    if (!hasFiles(event)) return
    event.preventDefault()
    event.dataTransfer.dropEffect = 'copy'
  })
  place.addEventListener('drop', (event) => {
    if (!hasFiles(event)) return
    event.preventDefault()
    event.stopPropagation() // the host would take it for a workflow
    take([...event.dataTransfer.files])
  })
  return make('div', { class: 'seqlora-open' }, chosen, make('button', {
    type: 'button', class: 'seqlora-button', title: t('library.openTitle'), onclick: () => chosen.click()
  }, icon('folder-open'), t('library.open')))
}
